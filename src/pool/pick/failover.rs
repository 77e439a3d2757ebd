//! Failover groups: the first choice is random, the others follow in sequence; groups nest.
//!
//! Owns the tree of groups. Where a session goes on is derived from the last backend that it tried: the next one
//! in that backend's group, around, then the next sibling of the group, and so on up. A group that the session
//! enters anew is entered at a random child. So each backend is offered once, and no session carries a cursor.

use super::{Backend, Candidates, Slot};
use crate::config;
use crate::name::BackendId;
use crate::rng::Rng;
use std::sync::Arc;

pub(in crate::pool) struct Failover {
    root: Group,
    /// Each backend's index, sorted by id.
    indices: Box<[(BackendId, u16)]>,
}

impl Failover {
    pub fn new(group: &config::Group, backends: &[Arc<Backend>]) -> Self {
        let root = match Node::new(group) {
            Some(Node::Group(root)) => root,
            leaf => Group { children: leaf.into_iter().collect() },
        };
        let mut indices: Box<[_]> =
            backends.iter().enumerate().map(|(index, backend)| (backend.id, index as u16)).collect();
        indices.sort_unstable();
        Self { root, indices }
    }

    pub fn pick(&self, candidates: &Candidates<'_>, rng: &mut Rng) -> Option<Slot> {
        // A backend that has left the pool since has no place in the tree: what was tried before it has.
        match candidates.tried().as_slice().iter().rev().find_map(|&id| self.index_of(id)) {
            None => self.root.enter(candidates, rng),
            Some(last) => self.root.go_on(last, candidates, rng),
        }
    }

    /// How likely each is to be the first choice.
    pub fn odds(&self, candidates: &Candidates<'_>) -> Vec<(usize, f64)> {
        let mut odds = Vec::new();
        self.root.odds(candidates, 1.0, &mut odds);
        odds
    }

    fn index_of(&self, id: BackendId) -> Option<usize> {
        let found = self.indices.binary_search_by_key(&id, |&(id, _)| id).ok()?;
        Some(usize::from(self.indices[found].1))
    }
}

/// Never empty, except for a root. The leaves below it are consecutive indices, ascending from child to child.
struct Group {
    children: Box<[Node]>,
}

enum Node {
    Leaf(usize),
    Group(Group),
}

impl Group {
    /// From a random child on, all around.
    fn enter(&self, candidates: &Candidates<'_>, rng: &mut Rng) -> Option<Slot> {
        let start = rng.index(self.children.len());
        self.children[start..].iter().chain(&self.children[..start]).find_map(|child| child.offer(candidates, rng))
    }

    /// As [`enter`](Self::enter): each child is as likely to be the begin, and what one has not, the next one gives.
    fn odds(&self, candidates: &Candidates<'_>, likely: f64, odds: &mut Vec<(usize, f64)>) {
        let count = self.children.len();
        let usable: Vec<usize> = (0..count).filter(|&child| self.children[child].has_usable(candidates)).collect();
        let Some(&last) = usable.last() else { return };
        // After the one before it, around, come those that lead to a child.
        let mut before = last;
        for child in usable {
            let ways = if child > before { child - before } else { child + count - before };
            self.children[child].odds(candidates, likely * ways as f64 / count as f64, odds);
            before = child;
        }
    }

    /// From the place after `last`, a leaf of this group, all around.
    fn go_on(&self, last: usize, candidates: &Candidates<'_>, rng: &mut Rng) -> Option<Slot> {
        let here = self.children.partition_point(|child| child.last_leaf() < last);
        let rest_of_child = match &self.children[here] {
            Node::Leaf(_) => None,
            Node::Group(group) => group.go_on(last, candidates, rng),
        };
        rest_of_child.or_else(|| {
            let siblings = self.children[here + 1..].iter().chain(&self.children[..here]);
            siblings.into_iter().find_map(|child| child.offer(candidates, rng))
        })
    }
}

impl Node {
    /// `None` if there is no member below.
    fn new(group: &config::Group) -> Option<Self> {
        match group {
            config::Group::Member(index) => Some(Self::Leaf(*index)),
            config::Group::Any(groups) => {
                let children: Box<[Self]> = groups.iter().filter_map(Self::new).collect();
                (!children.is_empty()).then_some(Self::Group(Group { children }))
            }
        }
    }

    fn offer(&self, candidates: &Candidates<'_>, rng: &mut Rng) -> Option<Slot> {
        match self {
            Self::Leaf(index) => candidates.claim(*index, rng),
            Self::Group(group) => group.enter(candidates, rng),
        }
    }

    fn has_usable(&self, candidates: &Candidates<'_>) -> bool {
        match self {
            Self::Leaf(index) => candidates.usable(*index),
            Self::Group(group) => group.children.iter().any(|child| child.has_usable(candidates)),
        }
    }

    fn odds(&self, candidates: &Candidates<'_>, likely: f64, odds: &mut Vec<(usize, f64)>) {
        match self {
            Self::Leaf(index) => odds.push((*index, likely)),
            Self::Group(group) => group.odds(candidates, likely, odds),
        }
    }

    fn last_leaf(&self) -> usize {
        match self {
            Self::Leaf(index) => *index,
            Self::Group(group) => group.children.last().map_or(0, Self::last_leaf),
        }
    }
}
