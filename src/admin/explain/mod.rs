//! Explain: where a client would go and why, for people who ask without sending one.
//!
//! Owns the one view that `GET /explain` and `tidegate explain` share ([`Explanation`]); `question` reads what is
//! asked, `view` finds the answer, `text` writes it for a terminal. Invariant: to ask changes nothing: no slot is
//! claimed, no turn taken, nothing counted.

mod question;
mod text;
mod view;

pub use question::{Complaint, PARAMETERS, Question, parameters, quoted};
pub use view::{Explanation, Standpoint};
