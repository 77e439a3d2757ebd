//! The backends: one process, one thread, an echo on each port that ends as its client ends.

use std::net::SocketAddrV4;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket};

const BACKLOG: u32 = 4_096;

#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    pub listen: Vec<SocketAddrV4>,
}

/// Serves until the process is killed; returns only with an error.
pub fn run(job: &Job) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting a runtime")?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        for &address in &job.listen {
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.bind(address.into()).with_context(|| format!("binding a backend to {address}"))?;
            drop(tokio::task::spawn_local(accept(socket.listen(BACKLOG)?)));
        }
        std::future::pending::<Result<()>>().await
    })
}

async fn accept(socket: TcpListener) {
    while let Ok((mut stream, _)) = socket.accept().await {
        let _ = stream.set_nodelay(true);
        drop(tokio::task::spawn_local(async move {
            let (mut reader, mut writer) = stream.split();
            // A reset ends it; an end is answered by an end.
            if tokio::io::copy(&mut reader, &mut writer).await.is_ok() {
                let _ = writer.shutdown().await;
            }
        }));
    }
}
