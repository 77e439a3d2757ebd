//! What an operator changes of a pool, and of the log.
//!
//! Owns the words: what is asked for, judged against what there is, becomes other [`Adjustments`] and is carried out at
//! once. Invariants: who asks for what is already so changes nothing; a refusal has changed nothing; whatever is
//! changed is in the adjustments, and so outlives reloads; each change is one line in the log. What it comes to is the
//! pool's own (`Pool::adjust`, `Pool::set_members`): nobody is touched but whom it is about.

use super::live::Live;
use crate::admin::command::{Asker, Command, Done, Refused, Reply, Why};
use crate::clock::{Millis, Now};
use crate::config::{
    self, AddedBackend, Adjustment, Adjustments, AdminState, Balance, HealthOverride, Level, PoolAdjustments,
    unknown_name, wrong_weight,
};
use crate::log;
use crate::name::PoolName;
use crate::pool::{Backend, Members, Pool};
use crate::table::{RoutingTable, Warning, members};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Carries out one of these; of other commands nothing is known here.
pub fn carry_out(command: Command, by: &Asker, live: &mut Live) -> Reply {
    match command {
        Command::Backend { pool, backend, change, deadline } => {
            let target = Target::find(live, &pool)?;
            let (index, backend) = target.backend(&backend)?;
            Change { index, backend, asked: change, deadline }.carry_out(&target, by, live)
        }
        Command::AddBackend { pool, address, name, weight, tier } => {
            let added = AddedBackend { address: address.to_string(), name, weight, tier };
            add(&Target::find(live, &pool)?, &added, by, live)
        }
        Command::RemoveBackend { pool, backend, deadline } => {
            remove(&Target::find(live, &pool)?, &backend, deadline, by, live)
        }
        Command::LogLevel(level) => Ok(log_level(level, by, live)),
        _ => Err(refused(Why::Invalid, "this is nobody's to change".to_owned())),
    }
}

fn refused(why: Why, text: String) -> Refused {
    Refused { why, text }
}

/// The pool that is asked for.
struct Target {
    config: config::Pool,
    pool: Arc<Pool>,
    table: Arc<RoutingTable>,
}

impl Target {
    fn find(live: &Live, name: &PoolName) -> Result<Self, Refused> {
        let table = live.shared.table.load_full();
        let config = live.config.pools.iter().find(|pool| pool.name == *name);
        if let (Some(config), Some(pool)) = (config, table.pool(name)) {
            Ok(Self { config: config.clone(), pool: Arc::clone(pool), table: Arc::clone(&table) })
        } else {
            let names: Vec<&str> = table.pools.iter().map(|pool| pool.name.as_str()).collect();
            Err(refused(Why::NotFound, unknown_name("pool", name.as_str(), "the config", &names)))
        }
    }

    /// The backend of that name, and its place.
    fn backend(&self, label: &str) -> Result<(usize, Arc<Backend>), Refused> {
        let view = self.pool.view();
        let found = view.backends.iter().enumerate().find(|(_, backend)| *backend.label == *label);
        found.map(|(index, backend)| (index, Arc::clone(backend))).ok_or_else(|| {
            let names: Vec<&str> = view.backends.iter().map(|backend| &*backend.label).collect();
            refused(Why::NotFound, unknown_name("backend", label, &self.place(), &names))
        })
    }

    fn place(&self) -> String {
        format!("pool {:?}", self.pool.name)
    }

    /// The pool's members with these adjustments, and what can't be.
    fn members(&self, live: &Live, own: &PoolAdjustments) -> (Members, Vec<Warning>) {
        let mut warnings = Vec::new();
        let members = members(&self.config, &live.resolution, own, &mut warnings);
        (members, warnings)
    }

    /// Takes other members for those in force, with all that is said of them.
    fn take_members(&self, live: &mut Live, members: Members, next: Adjustments) {
        let adjusted = &next.pool(&self.pool.name).backends;
        self.pool.set_members(members, adjusted, &live.shared.metrics, Now::read());
        put(live, next);
    }

    /// What is to be said where nobody is left.
    fn warning(&self) -> &'static str {
        if self.pool.is_out() { "; no backend of the pool gets new sessions now" } else { "" }
    }

    fn details(&self, live: &Live, backend: &Backend, more: Value) -> Value {
        let mut details = json!({
            "pool": self.pool.name.as_str(),
            "backend": &*backend.label,
            "address": backend.address.to_string(),
            "sessions": backend.active(),
            "last": self.pool.is_out(),
            "generation": self.table.generation,
            "survives_restart": live.is_kept(),
        });
        if let (Value::Object(all), Value::Object(more)) = (&mut details, more) {
            all.extend(more);
        }
        details
    }
}

/// A change of one backend.
struct Change {
    index: usize,
    backend: Arc<Backend>,
    asked: Adjustment,
    deadline: Option<Duration>,
}

impl Change {
    fn carry_out(self, target: &Target, by: &Asker, live: &mut Live) -> Reply {
        self.judge(target)?;
        let (name, label) = (target.pool.name.clone(), self.backend.label.to_string());
        let configured = target.pool.view().members.list[self.index].weight;
        let mut next = live.adjustments.clone();
        let own = next.pools.entry(name.to_string()).or_default().backends.entry(label.clone()).or_default();
        let before = *own;
        own.state = self.asked.state.or(own.state);
        own.health = self.asked.health.or(own.health);
        // Back to what the config says is nothing to be remembered.
        own.weight = self.asked.weight.or(own.weight).filter(|weight| *weight != configured);
        let after = *own;
        next.prune();
        let differs = next != live.adjustments;
        if differs {
            target.pool.adjust(&next.pool(&name).backends, &live.shared.metrics, false, Now::read());
            put(live, next);
        }
        let bounded = self.bound(after.state.unwrap_or_default());
        let (from, to) = (said(before, configured), said(after, configured));
        if differs || bounded {
            let deadline = self.deadline.filter(|_| bounded).map(tracing::field::debug);
            let (pool, backend) = (&name, &*label);
            tracing::info!(%by, command = "backend", %pool, backend, from, to, deadline, "changed");
        }
        let warning = target.warning();
        let summary = if differs {
            format!("backend {label} of pool {name}: {to} (before: {from}){warning}")
        } else if bounded {
            format!("backend {label} of pool {name}: {to}, as before, with another deadline{warning}")
        } else {
            format!("nothing has changed: backend {label} of pool {name}: {to}{warning}")
        };
        let now = Now::read().millis;
        let more = json!({
            "state": after.state.unwrap_or_default(),
            "weight": after.weight.unwrap_or(configured),
            "weight_configured": configured,
            "health": after.health.unwrap_or_default(),
            "deadline_ms": self.backend.drain_deadline().map(|at| at.saturating_sub(now)),
        });
        let details = target.details(live, &self.backend, more);
        Ok(Done { summary, changed: differs || bounded, details })
    }

    fn judge(&self, target: &Target) -> Result<(), Refused> {
        let invalid = |text: &str| Err(refused(Why::Invalid, text.to_owned()));
        if self.asked == Adjustment::default() && self.deadline.is_none() {
            return invalid("nothing is asked for; give a state, a weight or a health");
        }
        if let Some(weight) = self.asked.weight {
            wrong_weight(weight).map_or(Ok(()), |text| Err(refused(Why::Invalid, text)))?;
            if let Balance::Failover(_) = target.config.balance {
                return invalid("a pool with a target has no weights; drain the backend, or write a list of backends");
            }
        }
        let state = self.asked.state.unwrap_or(self.backend.operator().state);
        if self.deadline.is_some() && state == AdminState::Enabled {
            return invalid(
                "a deadline is for a backend that is taken out; use it with state = \"draining\" or \"disabled\"",
            );
        }
        Ok(())
    }

    /// Sets when the sessions of the backend are ended, or takes that back. Whether anything has changed.
    fn bound(&self, state: AdminState) -> bool {
        let stands = self.backend.drain_deadline();
        let wanted = match state {
            AdminState::Enabled => None,
            _ => end_of_sessions(stands, self.deadline),
        };
        if wanted != stands {
            self.backend.set_drain_deadline(wanted);
        }
        state != AdminState::Enabled && wanted != stands
    }
}

/// When the sessions of what is taken out are ended, where that `stands` and so much time is given from now: to ask
/// again never puts an end off.
pub fn end_of_sessions(stands: Option<Millis>, deadline: Option<Duration>) -> Option<Millis> {
    let asked = deadline.map(|deadline| Now::read().millis.saturating_add(deadline.as_millis() as Millis));
    stands.into_iter().chain(asked).min()
}

/// What stands, as words for the log: `enabled, weight 2`.
fn said(own: Adjustment, configured: u16) -> String {
    let state = own.state.unwrap_or_default().as_str();
    let health = match own.health.unwrap_or_default() {
        HealthOverride::Auto => "",
        HealthOverride::Up => ", forced up",
        HealthOverride::Down => ", forced down",
    };
    format!("{state}, weight {}{health}", own.weight.unwrap_or(configured))
}

fn put(live: &mut Live, next: Adjustments) {
    live.change(next);
    // There may be somebody else to probe, or one less.
    live.shared.table_changed.notify_one();
}

fn add(target: &Target, added: &AddedBackend, by: &Asker, live: &mut Live) -> Reply {
    let conflict = |text: String| refused(Why::Conflict, text);
    let name = target.pool.name.clone();
    let address = target.config.may_add(added).map_err(|text| refused(Why::Invalid, text))?;
    let view = target.pool.view();
    let member = |index: usize| (&view.members.list[index], view.weights[index]);
    if let Some(index) = view.backends.iter().position(|backend| backend.address == address) {
        let (is, weight) = member(index);
        let same = added.name.as_deref().is_none_or(|name| *name == *is.label);
        if !same || (added.weight, added.tier) != (weight, is.tier) {
            let (label, place, tier) = (&is.label, target.place(), is.tier);
            return Err(conflict(format!(
                "{address} is in {place} already, as {label:?} with weight {weight} in tier {tier}; change that one, or \
                 remove it first"
            )));
        }
        let summary = format!("nothing has changed: {} is in pool {name} already", is.label);
        let details = target.details(live, &view.backends[index], json!({"weight": weight, "tier": is.tier}));
        return Ok(Done { summary, changed: false, details });
    }
    let mut next = live.adjustments.clone();
    let own = next.pools.entry(name.to_string()).or_default();
    // What the config has itself, and an operator has removed, comes back as the config has it.
    let (whole, _) = target.members(live, &PoolAdjustments::default());
    let returning = whole
        .list
        .iter()
        .find(|member| member.address == address && added.name.as_deref().is_none_or(|name| *name == *member.label));
    let label = if let Some(member) = returning {
        if view.backends.iter().any(|backend| backend.label == member.label) {
            return Err(conflict(format!(
                "the config calls {address} {:?}, and another backend of the pool is called so; remove that one first, \
                 or give this one another name",
                member.label
            )));
        }
        if member.tier != added.tier {
            return Err(conflict(format!(
                "the config has {address} in tier {}; give that tier, or another name",
                member.tier
            )));
        }
        own.removed.retain(|removed| *removed != *member.label);
        if member.weight != added.weight {
            own.backends.entry(member.label.to_string()).or_default().weight = Some(added.weight);
        }
        Arc::clone(&member.label)
    } else {
        let label: Arc<str> = added.label().into();
        // One that was left out by its name gives way to the same one under another.
        own.added.retain(|other| other.address != added.address);
        own.added.push(added.clone());
        // Nor is it removed any more, if the config hasn't got it: should it come to have it, its word counts.
        if !whole.list.iter().any(|member| *member.label == *label) {
            own.removed.retain(|removed| *removed != *label);
        }
        label
    };
    next.prune();
    let (members, warnings) = target.members(live, next.pool(&name));
    if let Some(Warning::NotAdded { why, .. }) = warnings
        .iter()
        .find(|warning| matches!(warning, Warning::NotAdded { address, .. } if *address == added.address))
    {
        return Err(conflict(why.clone()));
    }
    target.take_members(live, members, next);
    let (weight, tier) = (added.weight, added.tier);
    let (_, backend) = target.backend(&label)?;
    tracing::info!(
        %by, command = "add backend", pool = %name, backend = &*label, %address, weight, tier, from = "absent",
        to = "enabled", "changed"
    );
    let summary = format!("backend {label} is in pool {name} now, with weight {weight}");
    let details = target.details(live, &backend, json!({"weight": weight, "tier": tier}));
    Ok(Done { summary, changed: true, details })
}

fn remove(target: &Target, label: &str, deadline: Option<Duration>, by: &Asker, live: &mut Live) -> Reply {
    let name = target.pool.name.clone();
    let mut next = live.adjustments.clone();
    let own = next.pools.entry(name.to_string()).or_default();
    let backend = match target.backend(label) {
        Ok((_, backend)) => backend,
        Err(refused) => return forget(target, label, refused, by, live),
    };
    let is_added = own.added.iter().any(|added| {
        added.label() == label && target.config.may_add(added).is_ok_and(|address| address == backend.address)
    });
    if !is_added {
        own.removed.push(label.to_owned());
    }
    // Not one either that was left out because of the name, and would come in by that.
    own.added.retain(|added| added.label() != label);
    // Should it come back, it comes as the config has it.
    own.backends.remove(label);
    next.prune();
    let (members, _) = target.members(live, next.pool(&name));
    if deadline.is_some() {
        backend.set_drain_deadline(end_of_sessions(backend.drain_deadline(), deadline));
    }
    target.take_members(live, members, next);
    tracing::info!(
        %by, command = "remove backend", pool = %name, backend = label, from = backend.state(), to = "absent",
        sessions = backend.active(), deadline = deadline.map(tracing::field::debug), "changed"
    );
    let summary = format!("backend {label} is removed from pool {name}{}", target.warning());
    let details = target.details(live, &backend, json!({"deadline_ms": deadline.map(|it| it.as_millis() as u64)}));
    Ok(Done { summary, changed: true, details })
}

/// What is asked to be removed isn't there: nothing is kept of what was said of it, but that it is to stay away.
fn forget(target: &Target, label: &str, unknown: Refused, by: &Asker, live: &mut Live) -> Reply {
    let name = target.pool.name.clone();
    let mut next = live.adjustments.clone();
    let own = next.pools.entry(name.to_string()).or_default();
    let said = own.backends.remove(label).is_some();
    let changed = said || own.added.iter().any(|added| added.label() == label);
    own.added.retain(|added| added.label() != label);
    let summary = if changed {
        format!("{label} isn't in pool {name}, and what was said of it is forgotten")
    } else if own.removed.iter().any(|removed| removed == label) {
        format!("nothing has changed: {label} is removed from pool {name} already")
    } else {
        return Err(unknown);
    };
    if changed {
        next.prune();
        put(live, next);
        let (pool, backend) = (&name, label);
        tracing::info!(%by, command = "remove backend", %pool, backend, from = "adjusted", to = "forgotten", "changed");
    }
    let details = json!({"pool": name.as_str(), "backend": label, "last": target.pool.is_out()});
    Ok(Done { summary, changed, details })
}

fn log_level(level: Level, by: &Asker, live: &mut Live) -> Done {
    let (from, configured) = (live.log_level(), live.config.log.level);
    let details = json!({"level": level, "level_configured": configured, "survives_restart": live.is_kept()});
    if from == level {
        let summary = format!("nothing has changed: the level of the log is {}", level.word());
        return Done { summary, changed: false, details };
    }
    let tell = || tracing::info!(%by, command = "log level", from = from.word(), to = level.word(), "changed");
    // In whichever of the two it is heard.
    if level < from {
        tell();
    }
    let log_level = Some(level).filter(|level| *level != configured);
    live.change(Adjustments { log_level, ..live.adjustments.clone() });
    log::set_level(level);
    if level > from {
        tell();
    }
    let summary = format!("the level of the log is {} (before: {})", level.word(), from.word());
    Done { summary, changed: true, details }
}

#[cfg(test)]
mod tests;
