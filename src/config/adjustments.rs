//! What an operator has changed at run time, on top of the file: it survives reloads, and restarts by the state file.
//!
//! Plain data. Names of what the config doesn't have (any more) are kept: they count again when it is back.

use super::words::{escaped, quoted};
use super::{Address, Balance, Level, Pool, address, limits, pools};
use crate::name::{BackendAddr, Endpoint, PoolName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// All changes, by listener and by pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adjustments {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub listeners: BTreeMap<String, AdminState>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pools: BTreeMap<String, PoolAdjustments>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_level: Option<Level>,
}

/// Of one pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolAdjustments {
    /// By what `/status` calls the backend.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub backends: BTreeMap<String, Adjustment>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<AddedBackend>,
    /// Backends of the config that are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<String>,
}

/// Of one backend; what is `None` is as the file and the probes have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adjustment {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<AdminState>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthOverride>,
}

/// A backend that isn't in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddedBackend {
    /// As in the file: `10.0.0.1:80` or `unix:/run/app.sock`.
    pub address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub weight: u16,
    pub tier: u8,
}

impl Adjustments {
    /// Those of one pool; without any change if there are none.
    #[must_use]
    pub fn pool(&self, name: &PoolName) -> &PoolAdjustments {
        static NONE: PoolAdjustments =
            PoolAdjustments { backends: BTreeMap::new(), added: Vec::new(), removed: Vec::new() };
        self.pools.get(name.as_str()).unwrap_or(&NONE)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether all of it could have come from an operator: what is read from elsewhere may not be so. Fails with what
    /// is wrong with it.
    pub fn judge(&self) -> Result<(), String> {
        for (pool, own) in &self.pools {
            let weights = own.backends.values().filter_map(|one| one.weight);
            let mut wrong = weights.chain(own.added.iter().map(|added| added.weight)).filter_map(wrong_weight);
            let tier = own.added.iter().map(|added| added.tier).find(|tier| *tier > limits::MAX_TIER);
            if let Some(wrong) = wrong.next().or_else(|| tier.map(|tier| format!("tier {tier} is too high"))) {
                return Err(format!("of pool {}: {wrong}", quoted(pool)));
            }
        }
        Ok(())
    }

    /// Removes whatever changes nothing.
    pub fn prune(&mut self) {
        self.listeners.retain(|_, state| *state != AdminState::Enabled);
        for pool in self.pools.values_mut() {
            for one in pool.backends.values_mut() {
                one.state = one.state.filter(|state| *state != AdminState::Enabled);
                one.health = one.health.filter(|health| *health != HealthOverride::Auto);
            }
            pool.backends.retain(|_, one| *one != Adjustment::default());
        }
        self.pools.retain(|_, pool| *pool != PoolAdjustments::default());
    }
}

impl AddedBackend {
    /// What logs, metrics and `/status` call it.
    #[must_use]
    pub fn label(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.address)
    }
}

impl Pool {
    /// The address of a backend that may be added to this pool at run time, beside whatever it has. Fails with what is
    /// wrong with it, and the way out.
    pub fn may_add(&self, added: &AddedBackend) -> Result<BackendAddr, String> {
        let shown = quoted(&added.address);
        let endpoint = match address::backend(&added.address) {
            Ok(Address::Endpoint(endpoint)) => endpoint,
            Ok(Address::Host { .. }) => {
                return Err(format!("{shown} is a host name, which only the config can have; use an address"));
            }
            Err(complaint) => return Err(format!("{}; {}", complaint.message, complaint.hint)),
        };
        if let Some((message, hint)) = added.name.as_deref().and_then(pools::wrong_name) {
            return Err(format!("{message}; {hint}"));
        }
        wrong_weight(added.weight).map_or(Ok(()), Err)?;
        if added.tier > limits::MAX_TIER {
            return Err(format!("tier {} is too high; use 0 to {}", added.tier, limits::MAX_TIER));
        }
        if added.tier > 0 && matches!(self.balance, Balance::Failover(_)) {
            return Err("a pool with a target has no tiers; leave the tier out".to_owned());
        }
        match &endpoint {
            Endpoint::Unix(_) => {
                let keys = [
                    ("health.port", self.health.port.is_some()),
                    ("health.address", self.health.address.is_some()),
                    ("health.agent", self.health.agent.is_some()),
                ];
                if let Some((key, _)) = keys.into_iter().find(|(_, is_set)| *is_set) {
                    return Err(format!(
                        "{shown} has no port, which the pool's {key} needs; use an address with a port"
                    ));
                }
            }
            Endpoint::Tcp(to) => {
                let sources = &self.origin.source_address;
                if !sources.is_empty() && !sources.iter().any(|from| from.is_ipv4() == to.is_ipv4()) {
                    let family = if SocketAddr::is_ipv4(to) { "IPv4" } else { "IPv6" };
                    return Err(format!(
                        "{shown} is {family}, and the pool's source_address has none of that; add one"
                    ));
                }
            }
        }
        Ok(BackendAddr(endpoint))
    }
}

/// What is wrong with a weight that an operator gives.
#[must_use]
pub fn wrong_weight(weight: u16) -> Option<String> {
    let most = limits::MAX_WEIGHT;
    match weight {
        0 => Some(format!("weight 0 takes nothing away from a backend; use 1 to {most}, or state = \"draining\"")),
        1..=limits::MAX_WEIGHT => None,
        _ => Some(format!("weight {weight} is too high; use 1 to {most}")),
    }
}

/// So many names are listed where one is asked for that there isn't.
const LISTED: usize = 20;

/// "there is no `what` `name` in `place`", with the names that there are and the one that is probably meant.
#[must_use]
pub fn unknown_name(what: &str, name: &str, place: &str, there_are: &[&str]) -> String {
    let mut listed: Vec<String> = there_are.iter().take(LISTED).map(|name| escaped(name)).collect();
    if there_are.len() > LISTED {
        listed.push(format!("… ({} in all)", there_are.len()));
    }
    let has = if listed.is_empty() { "it has none".to_owned() } else { format!("it has {}", listed.join(", ")) };
    let meant = super::words::nearest(name, there_are.iter().copied());
    let meant = meant.map_or_else(String::new, |meant| format!("; did you mean {}?", quoted(meant)));
    format!("there is no {what} {} in {place}; {has}{meant}", quoted(name))
}

/// What an operator said of a listener or a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdminState {
    #[default]
    Enabled,
    /// Takes no new sessions; those that it has go on.
    Draining,
    /// The same, and a backend isn't probed either.
    Disabled,
}

impl AdminState {
    /// The word in commands, logs and `/status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Draining => "draining",
            Self::Disabled => "disabled",
        }
    }
}

/// What an operator said of a backend's health.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthOverride {
    /// What the probes say.
    #[default]
    Auto,
    Up,
    Down,
}
