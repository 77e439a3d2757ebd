//! What an operator has changed at run time, on top of the file: it survives reloads, and restarts by the state file.
//!
//! Plain data. Names of what the config doesn't have (any more) are kept: they count again when it is back.

use super::Level;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
