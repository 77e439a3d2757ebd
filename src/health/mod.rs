//! Stub
use crate::table::RoutingTable;
use arc_swap::ArcSwap;
use std::sync::Arc;
pub const MAX_PROBES: usize = 256;
pub async fn run(table: Arc<ArcSwap<RoutingTable>>) {
    for p in &table.load().pools {
        for b in &p.view().backends {
            b.set_health(crate::pool::Health::Up, 0)
        }
    }
    std::future::pending::<()>().await
}
