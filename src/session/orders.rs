//! What the process asks of a worker while it runs, and the task of the worker that does it.
//!
//! Owns the words, and the acceptors: one for each listening socket that an order has brought. Decides nothing.
//! Invariants: an order is served also while the worker drains; an acceptor that panics takes the worker with it, one
//! that ends is forgotten. A worker that is stuck finds its orders when it is back; its siblings accept meanwhile, also
//! from sockets of which it doesn't know yet.

use super::balance::SharedSocket;
use super::listing::Closed;
use super::worker::Worker;
use super::{acceptor, listing};
use crate::drain::{LocalTasks, spawn_local};
use crate::listing::{Answer, Query};
use crate::name::SessionId;
use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Orders that may wait for a worker; one more is refused.
pub const ROOM: usize = 64;

/// Something for a worker to do.
pub enum Order {
    /// Accept from these as well.
    Listen(Vec<Arc<SharedSocket>>),
    /// Say which sessions there are.
    List(Query, oneshot::Sender<Answer>),
    /// End this session, and say whether it was there.
    Close(SessionId, oneshot::Sender<Closed>),
}

/// Serves for ever; an error only if the worker can't go on.
pub async fn serve(worker: Rc<Worker>, mut orders: mpsc::Receiver<Order>) -> io::Result<Infallible> {
    let mut acceptors = LocalTasks::default();
    loop {
        tokio::select! {
            Some(order) = orders.recv() => match order {
                Order::Listen(sockets) => for socket in sockets {
                    acceptors.spawn(acceptor::run(socket, Rc::clone(&worker)));
                },
                // Whoever asked may have gone; then nobody needs the answer.
                Order::List(query, reply) => {
                    let worker = Rc::clone(&worker);
                    drop(spawn_local(async move { reply.send(listing::answer(&worker, &query).await) }));
                }
                Order::Close(id, reply) => {
                    let worker = Rc::clone(&worker);
                    drop(spawn_local(async move { reply.send(listing::close(&worker, id).await) }));
                }
            },
            ended = acceptors.one_ended() => ended?,
        }
    }
}
