//! What a reload would change of the process as it is, how many of its sessions that touches, and what becomes of that
//! which operators have changed (`adjusted`).
//!
//! Owns how what runs is counted by the names that a config has for it. Nothing is bound, so that an address that
//! somebody else has shows only at the reload. Next: `config::plan`, for what is said of it.

mod adjusted;

use super::examine::{Examined, hash};
use super::live::Live;
use crate::admin::command::Done;
use crate::config::plan::{Plan, Sessions, backend_id};
use crate::config::{self, Address, Config, Member};
use crate::table::{Resolution, RoutingTable};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};

/// Of a config that could be had.
pub fn plan(examined: &Examined, live: &Live) -> Done {
    let sessions = sessions(&live.shared.table.load(), &live.config, &live.resolution);
    let mut plan = Plan::of(&live.config, &examined.config, Some(&sessions));
    plan.starts_from(live.history.started(), &examined.config);
    add_other_addresses(
        &mut plan,
        (&live.config, &live.resolution),
        (&examined.config, &examined.resolution),
        &sessions,
    );
    let (from, to) = ((&*live.config, &live.resolution), (&examined.config, &examined.resolution));
    plan.adjustments = adjusted::adjusted(from, to, &live.adjustments);
    let summary = plan.summary();
    let mut details = serde_json::to_value(&plan).unwrap_or_else(|_| json!({}));
    if let Value::Object(details) = &mut details {
        details.insert("generation".to_owned(), live.generation().into());
        details.insert("from_hash".to_owned(), live.hash().into());
        details.insert("to_hash".to_owned(), hash(&examined.text).into());
        details.insert("warnings".to_owned(), examined.warnings.clone().into());
    }
    Done { summary, changed: false, details }
}

fn sessions(table: &RoutingTable, config: &Config, resolution: &Resolution) -> Sessions {
    let of_listener = |listener: &config::Listener| {
        let active = table.listener(&listener.name).map_or(0, |listener| listener.metrics.active.get());
        (listener.name.to_string(), u64::try_from(active).unwrap_or(0))
    };
    let mut sessions =
        Sessions { listeners: config.listeners.iter().map(of_listener).collect(), ..Sessions::default() };
    for pool in &config.pools {
        let Some(living) = table.pool(&pool.name) else { continue };
        let view = living.view();
        let active = |backend: &crate::pool::Backend| u64::from(backend.active());
        let by_address: HashMap<_, u64> =
            view.backends.iter().map(|backend| (&backend.address.0, active(backend))).collect();
        let of_member = |member: &Member| {
            let addresses = resolution.endpoints(&member.address);
            (backend_id(member), addresses.iter().filter_map(|address| by_address.get(address)).sum())
        };
        let backends: BTreeMap<String, u64> = pool.members.iter().map(of_member).collect();
        let name = pool.name.to_string();
        sessions.pools.insert(name.clone(), by_address.values().sum());
        sessions.backends.insert(name, backends);
    }
    sessions
}

/// Host names that stand for other addresses than before: the backends behind them change, whatever the config says.
fn add_other_addresses(
    plan: &mut Plan,
    (from, before): (&Config, &Resolution),
    (to, after): (&Config, &Resolution),
    sessions: &Sessions,
) {
    let known: HashMap<_, _> = from
        .pools
        .iter()
        .flat_map(|pool| pool.members.iter().map(|member| ((pool.name.as_str(), backend_id(member)), member)))
        .collect();
    for pool in &to.pools {
        for member in pool.members.iter().filter(|member| matches!(member.address, Address::Host { .. })) {
            let id = backend_id(member);
            if !known.contains_key(&(pool.name.as_str(), id.clone())) {
                continue;
            }
            let (from, to) = (before.endpoints(&member.address), after.endpoints(&member.address));
            if from != to {
                let shown = |addresses: &[crate::name::Endpoint]| {
                    format!("[{}]", addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
                };
                let active = sessions.backends.get(pool.name.as_str()).and_then(|backends| backends.get(&id)).copied();
                plan.resolves(pool.name.as_str(), &id, shown(&from), shown(&to), active);
            }
        }
    }
}
