//! stub
use super::start::Shared;
use crate::admin::Phase;
use crate::net::listen::ListenSocket;
use tokio::sync::watch;
pub struct Control;
impl Control {
    pub fn start(s: &Shared, _a: Option<ListenSocket>, _p: watch::Receiver<Phase>) -> Self {
        crate::drain::spawn(crate::health::run(s.table.clone()));
        Control
    }
    pub async fn first_round(&self) {
        tokio::task::yield_now().await
    }
    pub async fn stop(self) {}
}
