//! How long the endpoint bears with whom.
//!
//! The clock is the runtime's, which jumps when nobody has anything to do. A unix socket hands bytes over at once,
//! so that it never jumps over some that are under way.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::unix(&dir.path().join("admin.sock"), CONFIG);
    let begun = time::Instant::now();
    assert_eq!(served.exchange("").await, "");
    assert_about(begun.elapsed(), HEAD);

    let mut stream = served.connect().await;
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let begun = time::Instant::now();
    assert!(rest(&mut stream).await.ends_with("alive\n"));
    assert_about(begun.elapsed(), HEAD);
}

#[tokio::test(start_paused = true)]
async fn a_slow_head_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::unix(&dir.path().join("admin.sock"), CONFIG);
    let (mut reader, mut writer) = tokio::io::split(served.connect().await);
    writer.write_all(b"GET /livez HTTP/1.1\r\nX: ").await.unwrap();
    let begun = time::Instant::now();
    let dripping = drain::spawn(async move {
        while writer.write_all(b"x").await.is_ok() {
            sleep(Duration::from_secs(1)).await;
        }
    });
    let mut text = String::new();
    reader.read_to_string(&mut text).await.unwrap();
    assert_eq!(Answer::parse(&text).status, 408);
    assert_about(begun.elapsed(), HEAD);
    drop(reader);
    dripping.abort();
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::unix(&dir.path().join("admin.sock"), CONFIG);
    let begun = time::Instant::now();
    let text = served.exchange("GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\nx").await;
    assert_eq!(Answer::parse(&text).status, 200);
    assert_about(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::unix(&dir.path().join("admin.sock"), &large_config());
    let mut stream = served.connect().await;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    sleep(LIFE + SECOND).await;
    let answer = Answer::parse(&rest(&mut stream).await);
    let length: usize = answer.headers["content-length"].parse().unwrap();
    assert!(answer.body.len() < length, "all of {length} bytes fit into the socket: the test shows nothing");
}

#[tokio::test(start_paused = true)]
async fn a_busy_connection_ends_between_two_answers() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::unix(&dir.path().join("admin.sock"), CONFIG);
    let mut stream = served.connect().await;
    let begun = time::Instant::now();
    let mut answers = 0;
    let mut text = String::new();
    while stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await.is_ok() {
        let mut buffer = [0; 4_096];
        // The request may cross with the end.
        let Ok(read @ 1..) = stream.read(&mut buffer).await else { break };
        text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        answers += 1;
        sleep(SECOND).await;
    }
    assert_about(begun.elapsed(), LAST_REQUEST);
    assert_eq!(text.matches("alive\n").count(), answers);
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_idle_connections_and_then_the_endpoint() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::unix(&dir.path().join("admin.sock"), CONFIG);
    let mut idle = served.connect().await;
    idle.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    idle.read_u8().await.unwrap();
    let begun = time::Instant::now();
    served.stop.send(()).unwrap();
    rest(&mut idle).await;
    served.serving.await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_a_slow_reader() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::unix(&dir.path().join("admin.sock"), &large_config());
    let mut slow = served.connect().await;
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    slow.read_u8().await.unwrap();
    let begun = time::Instant::now();
    served.stop.send(()).unwrap();
    served.serving.await.unwrap();
    assert_about(begun.elapsed(), STOP);
}

const SECOND: Duration = Duration::from_secs(1);

/// Time passes only by whole timers; what is left is their grain.
#[track_caller]
fn assert_about(elapsed: Duration, expected: Duration) {
    let late = elapsed.checked_sub(expected);
    assert!(late.is_some_and(|late| late < 2 * SECOND), "{elapsed:?} instead of {expected:?}");
}
