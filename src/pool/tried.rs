//! What one session has tried.

use crate::config;
use crate::name::BackendId;

/// The backends that one session has tried, in order, held inline.
#[derive(Clone, Debug)]
pub struct Tried {
    ids: [BackendId; Self::MAX],
    len: u8,
}

impl Tried {
    /// As many as a session may make attempts.
    pub const MAX: usize = config::limits::MAX_ATTEMPTS as usize;

    /// Pushing more than [`MAX`](Self::MAX) is a mistake of the caller; what exceeds is not remembered.
    pub fn push(&mut self, id: BackendId) {
        debug_assert!(self.len() < Self::MAX, "more attempts than the limit");
        if let Some(place) = self.ids.get_mut(usize::from(self.len)) {
            *place = id;
            self.len += 1;
        }
    }

    #[must_use]
    pub fn contains(&self, id: BackendId) -> bool {
        self.as_slice().contains(&id)
    }

    #[must_use]
    pub fn last(&self) -> Option<BackendId> {
        self.as_slice().last().copied()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[must_use]
    pub fn as_slice(&self) -> &[BackendId] {
        &self.ids[..self.len()]
    }
}

impl Default for Tried {
    fn default() -> Self {
        Self { ids: [BackendId(0); Self::MAX], len: 0 }
    }
}
