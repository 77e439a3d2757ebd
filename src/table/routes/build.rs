//! From the routes of a config to those of a table.
//!
//! Owns the order in which the conditions of a rule are asked: what is known without a byte first.

use super::condition::{Condition, Names, Networks};
use super::index::Index;
use super::share::{Salt, Share, Split, Use};
use super::{Entry, Routes, Rule, To};
use crate::config::{self, Conditions, DEFAULT_RULE, Destination, OTHER_RULES, TIMEOUT_RULE};
use crate::metrics::Metrics;
use crate::name::{ListenerName, PoolName};
use crate::pool::Pool;
use std::sync::Arc;

/// So many routes of a listener have a count of their own; those after them are counted together.
pub const MAX_COUNTED: usize = 1_000;

impl Routes {
    /// The routes of `listener`, of which each leads to what `pool` finds; one to a pool that isn't there is left out.
    pub fn new<'p>(
        listener: &config::Listener,
        pool: impl Fn(&PoolName) -> Option<&'p Arc<Pool>>,
        metrics: &Metrics,
    ) -> Self {
        let has_rules = !listener.routes.is_empty();
        let rule = |name: &str| {
            let sessions = has_rules.then(|| metrics.rule(&listener.name, name));
            Arc::new(Rule { name: name.into(), sessions })
        };
        let mut entries = Vec::with_capacity(listener.routes.len());
        let mut kept = Vec::with_capacity(listener.routes.len());
        for (position, route) in listener.routes.iter().enumerate() {
            let Some(to) = destination(&listener.name, route, &pool) else { continue };
            let counted = if position < MAX_COUNTED { &*route.name } else { OTHER_RULES };
            let sessions = Some(metrics.rule(&listener.name, counted));
            entries.push(Entry {
                rule: Arc::new(Rule { name: Arc::clone(&route.name), sessions }),
                conditions: conditions(&listener.name, &route.name, &route.when),
                to,
            });
            kept.push(&route.when);
        }
        let own = |name: Option<&PoolName>, called: &str| Some((rule(called), Arc::clone(pool(name?)?)));
        Self {
            listener: listener.name.clone(),
            wants_local: kept.iter().any(|when| !when.local_port.is_empty() || !when.local_address.is_empty()),
            index: Index::new(kept),
            rules: entries.into(),
            otherwise: own(listener.pool.as_ref(), DEFAULT_RULE),
            on_silence: own(listener.preread.timeout_pool.as_ref(), TIMEOUT_RULE),
        }
    }
}

fn destination<'p>(
    listener: &ListenerName,
    route: &config::Route,
    pool: &impl Fn(&PoolName) -> Option<&'p Arc<Pool>>,
) -> Option<To> {
    Some(match &route.to {
        Destination::Refuse => To::Refuse,
        Destination::Pool(name) => To::Pool(Arc::clone(pool(name)?)),
        Destination::Pools(weighted) => {
            let found = weighted.iter().filter_map(|one| Some((one.weight, Arc::clone(pool(&one.pool)?))));
            To::Pools(Split::new(found, Salt::of(Use::Pools, listener, &route.name))?)
        }
    })
}

fn conditions(listener: &ListenerName, rule: &str, when: &Conditions) -> Box<[Condition]> {
    let Conditions {
        source,
        local_port,
        local_address,
        sni,
        alpn,
        alpn_all,
        protocol,
        http_host,
        http_path,
        http_method,
        prefix,
        share,
    } = when;
    let salt = Salt::of(Use::Share, listener, rule);
    let all = [
        (!local_port.is_empty()).then(|| Condition::LocalPort(local_port.as_slice().into())),
        (!source.is_empty()).then(|| Condition::Source(Networks::new(source))),
        (!local_address.is_empty()).then(|| Condition::LocalAddress(Networks::new(local_address))),
        share.map(|share| Condition::Share(Share { share, salt })),
        (!protocol.is_empty()).then(|| Condition::Protocol(protocol.as_slice().into())),
        (!prefix.is_empty()).then(|| Condition::Prefix(prefix.as_slice().into())),
        sni.as_ref().map(|names| Condition::Sni(Names::new(names))),
        (!alpn.is_empty()).then(|| Condition::Alpn(alpn.as_slice().into())),
        alpn_all.as_ref().map(|names| Condition::AlpnAll(names.as_slice().into())),
        (!http_method.is_empty()).then(|| Condition::HttpMethod(http_method.as_slice().into())),
        (!http_host.is_empty()).then(|| Condition::HttpHost(Names::new(http_host))),
        (!http_path.is_empty()).then(|| Condition::HttpPath(http_path.as_slice().into())),
    ];
    all.into_iter().flatten().collect()
}
