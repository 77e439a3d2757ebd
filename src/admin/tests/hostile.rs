//! What is refused, and what limits hold.

use super::*;

#[tokio::test]
async fn what_two_readers_could_read_differently_is_refused() {
    let served = Served::tcp();
    let smuggled = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for head in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Content-Length: 4\r\nContent-Length: 4\r\n",
        "Content-Length: 0\r\nContent-Length: 34\r\n",
        "Content-Length: 0, 0\r\n",
        "Content-Length: +4\r\n",
        "Content-Length: 0x4\r\n",
        "Content-Length: -1\r\n",
        "Content-Length : 4\r\n",
        "X: a\n",
        "X: a\r",
        "X: a\rY: b\r\n",
        "X: a\r\n folded\r\n",
        "X: a\r\n\tContent-Length: 4\r\n",
        " X: a\r\n",
        "X\r\n",
        "X: a\0b\r\n",
        ": a\r\n",
    ] {
        let text =
            served.exchange(&format!("GET /livez HTTP/1.1\r\nHost: localhost\r\n{head}\r\n0\r\n\r\n{smuggled}")).await;
        assert_eq!(Answer::parse(&text).status, 400, "{head:?}: {text:?}");
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{head:?}: {text:?}");
    }
    for request in [
        "GET /livez HTTP/1.1\nHost: localhost\r\n\r\n",
        "GET /livez HTTP/1.1\r\nHost: localhost\r\n\n",
        "GET /livez HTTP/1.1\n\n",
        "GET /livez\r\n\r\n",
        "GET  /livez HTTP/1.1\r\n\r\n",
        "GET /li\0vez HTTP/1.1\r\n\r\n",
        "POST /livez HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "\u{1}\u{3}\u{3}binary\r\n\r\n",
    ] {
        let text = served.exchange(request).await;
        assert_eq!(Answer::parse(&text).status, 400, "{request:?}: {text:?}");
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_up_to_the_first_bad_one() {
    let served = Served::tcp();
    let good = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let text = served.exchange(&format!("{good}{good}GET /livez HTTP/1.1\r\nX: a\n\r\n{good}")).await;
    let statuses: Vec<&str> =
        text.match_indices("HTTP/1.1 ").map(|(at, found)| &text[at + found.len()..][..3]).collect();
    assert_eq!(statuses, ["200", "200", "400"], "{text}");
}

#[tokio::test]
async fn after_a_body_the_connection_ends() {
    let served = Served::tcp();
    let smuggled = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for (announced, status) in [("Content-Length: 34", 200), ("Transfer-Encoding: chunked", 411)] {
        let text =
            served.exchange(&format!("GET /livez HTTP/1.1\r\nHost: localhost\r\n{announced}\r\n\r\n{smuggled}")).await;
        let answer = Answer::parse(&text);
        assert_eq!((answer.status, answer.headers["connection"].as_str()), (status, "close"), "{text}");
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{text}");
    }
}

#[tokio::test]
async fn a_gigabyte_is_refused_without_being_read() {
    let served = Served::tcp();
    let Endpoint::Tcp(address) = served.address.0 else { unreachable!() };
    let (mut reader, mut writer) = TcpStream::connect(address).await.unwrap().into_split();
    let head = format!("POST /status HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", 1 << 30);
    writer.write_all(head.as_bytes()).await.unwrap();
    let sending = drain::spawn(async move {
        let mut sent = 0;
        while let Ok(written) = writer.write(&[b'x'; 8_192]).await {
            sent += written;
        }
        sent
    });
    let mut text = Vec::new();
    // The end is a reset if more was on its way than the endpoint waits for.
    _ = reader.read_to_end(&mut text).await;
    assert_eq!(Answer::parse(&String::from_utf8(text).unwrap()).status, 413);
    let sent = sending.await.unwrap();
    assert!(sent < 64 << 20, "{sent} bytes were taken");
    assert_eq!(served.get("/livez").await.status, 200);
}

#[tokio::test]
async fn a_body_that_is_refused_is_not_asked_for() {
    let served = Served::tcp();
    let head = "POST /status HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n";
    let text = served.exchange(head).await;
    assert!(text.starts_with("HTTP/1.1 413 "), "{text}");
}

#[tokio::test]
async fn heads_are_bounded() {
    let served = Served::tcp();
    let long = format!("GET /livez HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(2 * MAX_HEAD));
    assert_eq!(Answer::parse(&served.exchange(&long).await).status, 431);
    let many = format!("GET /livez HTTP/1.1\r\n{}\r\n", "X: a\r\n".repeat(MAX_HEADERS + 1));
    assert_eq!(Answer::parse(&served.exchange(&many).await).status, 431);
    let path = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(2 * MAX_HEAD));
    assert_eq!(Answer::parse(&served.exchange(&path).await).status, 431);
}

#[tokio::test]
async fn a_client_that_has_said_all_still_gets_the_answer() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::unix(&dir.path().join("admin.sock"), &large_config());
    let mut stream = served.connect().await;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    let answer = Answer::parse(&rest(&mut stream).await);
    assert_eq!(answer.headers["content-length"], answer.body.len().to_string());
}

#[tokio::test]
async fn f79_who_only_holds_connections_keeps_nobody_out() {
    let served = Served::tcp();
    let mut held = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let mut stream = served.connect().await;
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        // An answer shows that it has its place.
        Answer::parse(&read_answer(&mut stream).await);
        held.push(stream);
    }
    assert_eq!(served.metrics.admin_refused.get(), 0);
    // The first of them asks again, so that the second is the one that waits for nothing for longest.
    held[0].write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    assert_eq!(Answer::parse(&read_answer(&mut held[0]).await).status, 200);
    assert_eq!(served.get("/livez").await.status, 200);
    assert_eq!(rest(&mut held[1]).await, "", "it has made room");
    assert_eq!(served.metrics.admin_refused.get(), 1);
    // Nobody else has: the one that came has gone.
    for stream in held.iter_mut().skip(2) {
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        assert_eq!(Answer::parse(&read_answer(stream).await).status, 200);
    }
}

/// An answer to `/livez`, on a connection that goes on.
async fn read_answer(stream: &mut Stream) -> String {
    let mut text = String::new();
    while !text.ends_with("alive\n") {
        text.push(char::from(stream.read_u8().await.unwrap()));
    }
    text
}

#[tokio::test]
async fn a_unix_socket_is_for_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let served = Served::unix(&path, CONFIG);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(served.get("/livez").await.body, "alive\n");
    served.stop.send(()).unwrap();
    served.serving.await.unwrap();
    assert!(!path.exists());
}

/// In a process of its own, because the shortage is the whole process's.
#[test]
fn the_endpoint_answers_without_a_descriptor_to_spare() {
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["admin::tests::hostile::child_without_descriptors", "--exact", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
}

#[tokio::test]
#[ignore = "run by the_endpoint_answers_without_a_descriptor_to_spare in a process of its own"]
async fn child_without_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = Rlimit { current: Some(128), maximum: getrlimit(Resource::Nofile).maximum };
    setrlimit(Resource::Nofile, limit).unwrap();
    let served = Served::tcp();
    let Endpoint::Tcp(address) = served.address.0 else { unreachable!() };
    // Until the endpoint waits for connections, with its spare in hand.
    yield_now().await;
    let clients = [(); 3].map(|()| TcpSocket::new_v4().unwrap());
    let mut hoard = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        hoard.push(file);
    }
    let mut streams = Vec::new();
    for client in clients {
        let mut stream = client.connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        streams.push(stream);
    }
    // The first has the spare one; each other gets that of the one before.
    for mut stream in streams {
        let mut start = [0; 15];
        time::timeout(Duration::from_secs(10), stream.read_exact(&mut start)).await.unwrap().unwrap();
        assert_eq!(&start, b"HTTP/1.1 200 OK");
    }
    drop(hoard);
}
