//! What becomes of what operators have changed at run time, if a config were taken.
//!
//! Owns the comparison: of each adjustment, what it is about before and after, found by what a reload goes by itself
//! (`table::members` and `table::settled`). An adjustment to which the config makes no difference is not told of.

use crate::config::plan::{Adjusted, Becomes, Kind};
use crate::config::values::shell_word;
use crate::config::{self, AddedBackend, Adjustment, Adjustments, Config, HealthOverride, PoolAdjustments};
use crate::pool::ResolvedMember;
use crate::table::{Resolution, Warning, members, settled};

/// A config, and what its host names stand for.
pub type Known<'a> = (&'a Config, &'a Resolution);

/// By listener, and by pool and backend.
pub fn adjusted(from: Known, to: Known, adjustments: &Adjustments) -> Vec<Adjusted> {
    let mut told = Vec::new();
    if let Some(level) = adjustments.log_level.filter(|_| from.0.log.level != to.0.log.level) {
        let says = format!("{} was set at run time and stays, whatever the config says", level.word());
        told.push(Adjusted { kind: Kind::Key, name: "log.level".to_owned(), of: None, becomes: Becomes::Stays, says });
    }
    listeners(from.0, to.0, adjustments, &mut told);
    let after = settled(to.0, to.1, adjustments);
    for (name, own) in &adjustments.pools {
        let nothing = PoolAdjustments::default();
        let settled = after.pools.get(name).unwrap_or(&nothing);
        let (before, after) = (Side::find(from, name, own), Side::find(to, name, settled));
        Pool { name, own, settled, before, after, told: &mut told }.tell();
    }
    told
}

fn listeners(from: &Config, to: &Config, adjustments: &Adjustments, told: &mut Vec<Adjusted>) {
    for (name, state) in &adjustments.listeners {
        let find =
            |config: &Config| config.listeners.iter().find(|one| one.name.as_str() == name).map(|one| one.bind.clone());
        let state = state.as_str();
        let (becomes, says) = match (find(from), find(to)) {
            (Some(_), None) => (Becomes::Rests, format!("{state} is kept for when the config has it again")),
            (None, Some(_)) => (Becomes::Applies, format!("comes {state}, as was said at run time: it takes nobody")),
            (Some(before), Some(after)) if before != after => (
                Becomes::Stays,
                format!("{state} was said at run time and stays: it takes nobody at other addresses either"),
            ),
            _ => continue,
        };
        told.push(Adjusted { kind: Kind::Listener, name: name.clone(), of: None, becomes, says });
    }
}

/// A pool as one of the two configs has it.
struct Side<'a> {
    config: &'a config::Pool,
    /// What the file alone comes to, and with the adjustments.
    file: Vec<ResolvedMember>,
    all: Vec<ResolvedMember>,
    left_out: Vec<(String, String)>,
}

impl<'a> Side<'a> {
    fn find((config, resolution): Known<'a>, name: &str, own: &PoolAdjustments) -> Option<Self> {
        let config = config.pools.iter().find(|pool| pool.name.as_str() == name)?;
        let list = |own, warnings: &mut Vec<Warning>| members(config, resolution, own, warnings).list;
        let mut warnings = Vec::new();
        let (file, all) = (list(&PoolAdjustments::default(), &mut Vec::new()), list(own, &mut warnings));
        let left_out = warnings.into_iter().filter_map(|warning| match warning {
            Warning::NotAdded { address, why, .. } => Some((address, why)),
            _ => None,
        });
        Some(Self { config, file, all, left_out: left_out.collect() })
    }

    /// Why the added backend isn't in, if it isn't.
    fn refuses(&self, added: &AddedBackend) -> Option<&str> {
        self.left_out.iter().find(|(address, _)| *address == added.address).map(|(_, why)| why.as_str())
    }
}

fn find<'m>(members: &'m [ResolvedMember], label: &str) -> Option<&'m ResolvedMember> {
    members.iter().find(|member| *member.label == *label)
}

/// The adjustments of one pool.
struct Pool<'a> {
    name: &'a str,
    own: &'a PoolAdjustments,
    /// The same, as they would be then.
    settled: &'a PoolAdjustments,
    /// `None` where the config has no such pool.
    before: Option<Side<'a>>,
    after: Option<Side<'a>>,
    told: &'a mut Vec<Adjusted>,
}

impl Pool<'_> {
    fn tell(self) {
        let own = self.own;
        let added = own.added.iter().map(|added| (added.label(), self.added(added)));
        let removed = own.removed.iter().map(|label| (label.as_str(), self.removed(label)));
        let said = own.backends.iter().map(|(label, said)| (label.as_str(), self.said(label, *said)));
        let all: Vec<_> = added.chain(removed).chain(said).collect();
        for (label, found) in all {
            let Some((becomes, says)) = found else { continue };
            let (name, of) = (label.to_owned(), Some(self.name.to_owned()));
            self.told.push(Adjusted { kind: Kind::Backend, name, of, becomes, says });
        }
    }

    /// Of a backend that was added.
    fn added(&self, added: &AddedBackend) -> Option<(Becomes, String)> {
        let Some(after) = &self.after else {
            self.before.as_ref()?;
            return Some((Becomes::Rests, "was added at run time, and is kept for when the pool is back".to_owned()));
        };
        if let Some(member) = self.taken_over(added) {
            let ResolvedMember { label, weight, .. } = member;
            let (before, said) = (added.weight, self.settled.backends.get(&**label));
            let more = said.map(|said| format!(", and {}, as was said at run time", words(*said))).unwrap_or_default();
            let says = format!(
                "was added at run time with weight {before}: the config has it, as {label} with weight {weight}{more}"
            );
            return Some((Becomes::TakenOver, says));
        }
        let before = self.before.as_ref();
        match after.refuses(added) {
            Some(why) if before.and_then(|before| before.refuses(added)) != Some(why) => {
                Some((Becomes::LeftOut, format!("was added at run time, and is left out: {why}")))
            }
            None if before.is_none_or(|before| before.refuses(added).is_some()) => {
                Some((Becomes::Applies, format!("was added at run time, and comes in with weight {}", added.weight)))
            }
            _ => None,
        }
    }

    /// The member of the config that a backend becomes which was added.
    fn taken_over(&self, added: &AddedBackend) -> Option<&ResolvedMember> {
        let after = self.after.as_ref().filter(|_| !self.settled.added.contains(added))?;
        let address = after.config.may_add(added).ok()?;
        after.all.iter().find(|member| member.address == address)
    }

    /// Of a backend of the config that was left out.
    fn removed(&self, label: &str) -> Option<(Becomes, String)> {
        let file = |side: &'_ Option<Side<'_>>| side.as_ref().and_then(|side| find(&side.file, label)).cloned();
        match (file(&self.before), file(&self.after)) {
            (Some(_), None) => Some((
                Becomes::Rests,
                "was removed at run time, and stays out should the config have it again".to_owned(),
            )),
            (None, Some(after)) => {
                let back = as_typed(self.name, &after);
                Some((Becomes::Applies, format!("was removed at run time, and stays out: {back} brings it back")))
            }
            (Some(before), Some(after)) if before != after => {
                Some((Becomes::Stays, "was removed at run time, and stays out".to_owned()))
            }
            _ => None,
        }
    }

    /// Of a backend of which something was said.
    fn said(&self, label: &str, said: Adjustment) -> Option<(Becomes, String)> {
        let added = self.own.added.iter().find(|added| added.label() == label);
        if added.is_some_and(|added| self.taken_over(added).is_some()) {
            return None;
        }
        let member = |side: &'_ Option<Side<'_>>| side.as_ref().and_then(|side| find(&side.all, label)).cloned();
        let says = words(said);
        match (member(&self.before), member(&self.after)) {
            (Some(_), None) => Some((Becomes::Rests, format!("{says} is kept for when the pool has it again"))),
            (None, Some(_)) => Some((Becomes::Applies, format!("comes with what was said of it at run time: {says}"))),
            (Some(before), Some(after)) if before.address != after.address => {
                let at = after.address;
                Some((Becomes::Applies, format!("{says} was said at run time, and counts for the one at {at}")))
            }
            (Some(before), Some(after)) if before.weight != after.weight => {
                let weight = said.weight?;
                Some((
                    Becomes::Stays,
                    format!("weight {weight} was set at run time and stays, whatever the config says"),
                ))
            }
            _ => None,
        }
    }
}

/// What is typed to have a backend as the config has it.
fn as_typed(pool: &str, member: &ResolvedMember) -> String {
    let ResolvedMember { address, weight, tier, .. } = member;
    let weight = if *weight == 1 { String::new() } else { format!(" --weight {weight}") };
    let tier = if *tier == 0 { String::new() } else { format!(" --tier {tier}") };
    format!("tidegate add {} {}{weight}{tier}", shell_word(pool), shell_word(&address.to_string()))
}

/// What is said: `draining, weight 5, forced up`.
fn words(said: Adjustment) -> String {
    let state = said.state.map(|state| state.as_str().to_owned());
    let weight = said.weight.map(|weight| format!("weight {weight}"));
    let health = match said.health {
        Some(HealthOverride::Up) => Some("forced up".to_owned()),
        Some(HealthOverride::Down) => Some("forced down".to_owned()),
        Some(HealthOverride::Auto) | None => None,
    };
    [state, weight, health].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
