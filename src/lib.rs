//! tidegate, a Layer-4 TCP load balancer: the architecture page.
//!
//! # The walk of a connection
//!
//! | step | file | what happens |
//! |---|---|---|
//! | accept | [`session::acceptor`] | one task for each listening socket of each worker; what an accept error means |
//! | admit | [`admission`] | the listener's gate: a permit, or a refusal before any backend is touched |
//! | settle | [`session::balance`] | stays with this worker, or goes to one with fewer sessions |
//! | header | `session/proxy.rs`, [`net::proxy_protocol`] | where the listener wants it: whose connection a trusted proxy says that this is; limits of single clients come after it |
//! | preread | `session/preread.rs`, [`net::first_bytes`] | where a route depends on it: the first bytes, within a deadline and a bound |
//! | route | [`table`], `table/routes/` | the first rule that isn't ruled out, or the listener's own pool, from the immutable table |
//! | shed | `pool/shed.rs` | where the pool wants it: a share is refused while a latency stays above its target |
//! | connect | `session/connect.rs`, [`net::origin`] | claim a slot, connect from where the pool says, else claim again with what was tried, within a budget; a hedge beside a slow one; the pool's PROXY header |
//! | claim | [`pool`], `pool/pick/` | an available backend by the pool's policy; a slot is a guard |
//! | queue | `session/queue.rs`, [`pool::queue`] | where all that would do are full: waits for a place, with a deadline, or is refused |
//! | hold | `session/hold.rs`, [`pool::hold`] | where the pool wants it: while no backend is up, clients and what they send are kept, and released in order |
//! | replay | `session/replay.rs` | where the pool wants it: until the first byte of the answer, the next backend gets the same |
//! | relay | [`net::relay`] | bytes both ways, by copy or splice, in the worker's engine |
//! | close | [`session::close`], `net/relay/entry.rs` | the reason, a closed list; FIN or RST follows from it |
//! | record | `session/record.rs` | the one exit: metrics and the access-log line |
//!
//! # Threads
//!
//! A *worker* is a thread with a current-thread runtime and its own `SO_REUSEPORT` socket for each listener. What has
//! phases and deadlines (accepting, connecting, failing over) is async code that reads top to bottom. Once both sockets
//! are connected, the session moves into the worker's relay engine: an epoll of its own, watched by the runtime, where
//! a session is one small slab entry without task, timer, buffer or pipe. Workers share the table, the pools, the
//! counts of admission and the metrics, through atomics and a few small locks. Of each other they know a *seat*: how
//! many sessions it has, when it last lived, an inbox for fresh connections, and its listening sockets, of which the
//! daemon may send it more (`session/orders.rs`). The kernel spreads connections by a hash; a worker that has got more
//! than its share hands the next one over before it is a session, and a worker that is stuck has a sibling that accepts
//! for it. An established session never changes its thread. The *control thread* runs the daemon's loop, the health
//! checker, the keeper of the pools, the admin endpoint and the small tasks of [`daemon`]: memory that is given back,
//! or short; refusals told of; the watchdog. Log lines are written by threads of their own, behind bounded queues; a
//! config is read and judged by a thread of its own too.
//!
//! # Layers
//!
//! A module uses only strictly lower layers and its own folder; `tests/tidy.rs` holds the rule.
//!
//! | layer | modules | is |
//! |---|---|---|
//! | 0 | [`name`], [`backoff`], [`clock`], [`rng`], [`every`], [`drain`], [`sys`] | names and helpers; `sys` has all the `unsafe` |
//! | 1 | [`config`], [`listing`], [`metrics`], [`log`] | plain data, and output |
//! | 2 | [`net`] | sockets and bytes; knows no pool and no route |
//! | 3 | [`admission`], [`pool`] | may it come in, and where to: pure, no clock, no dice, no sockets |
//! | 4 | [`table`] | where does it go |
//! | 5 | [`session`], [`health`], [`admin`] | the workers, strangers to each other |
//! | 6 | [`daemon`], [`cli`], [`demo`] | the process |
//!
//! # Who may be chosen
//!
//! What stands in a backend's way is one word of flags (`pool/backend.rs`); none set is plain good. Five hands set
//! them:
//!
//! | hand | decides in | says |
//! |---|---|---|
//! | probes, [`health`]'s checker | [`pool::health`], damped | down |
//! | the backend's own agent, the same checker | `pool/backend/hands.rs` | down, draining, maint, a smaller share |
//! | an operator, `daemon/control.rs` | `pool/adjust.rs` | draining, disabled, down or up whatever others say |
//! | real traffic, `session/report.rs` | `pool/ejection.rs` | ejected, then half open for one trial |
//! | time, [`health`]'s keeper | `Pool::review` | an ejection is over, a slow start goes on |
//!
//! No hand undoes what another has said. Weights and members are no flags but the pool's view: an operator's change of
//! them is another view (`Pool::adjust`, `Pool::set_members`), and stays on top of every config that follows
//! ([`config::Adjustments`], applied by `table/build.rs`, kept by `daemon/state_file.rs`).
//!
//! From the flags of all backends `pool/mode.rs` finds what the pool does as a whole: which tiers are in use, and
//! whether it panics. That a backend is full is no flag: a place is one step of an atomic (`pool/count.rs`), taken with
//! the claim. Whoever finds none may wait in [`pool::queue`]; who gives a place back wakes the one whose turn it is.
//! `pool/candidates.rs` is what one claim may have; the pickers choose among these. Where a client is to stay on its
//! backend, `table/hash.rs` makes the key of what is known of it, and `pool/pick/maglev.rs` is the table in which that
//! key has its place; no state is kept of anybody. What would become of a client that has not come is
//! [`admin::explain`]'s to say, from `table/routes/explain.rs` and `pool/outlook.rs`, which change nothing. What
//! becomes of sessions whose backend went down or drains, or that last too long, is `session/mover.rs`. What goes on
//! from one config to the next is in `pool/succession.rs`, and for limits in `admission/terms.rs`.
//!
//! # Three speeds
//!
//! Config changes in minutes: the [`table::RoutingTable`], swapped whole. Membership changes in seconds: a pool's view,
//! swapped whole. Health and load change in microseconds: atomics in [`pool::Backend`]. A faster speed never forces a
//! rebuild of a slower one.
//!
//! # The walk of a change
//!
//! Whoever wants a change sends an [`admin::command::Command`], with who asks, to the daemon's loop, which carries out
//! one at a time. What takes long runs beside the loop. Sessions are the workers' own, who are asked directly.
//!
//! | step | file | what happens |
//! |---|---|---|
//! | ask | [`admin`], `daemon/look.rs`, a signal | a POST of somebody who may (`admin/who.rs`), a file that has changed, SIGHUP, SIGUSR2 |
//! | carry out | `daemon/carry_out.rs` | which part does it; the audit line and the answer |
//! | plan | [`config::diff`], [`config::plan`], `daemon/plan.rs` | what is different, and how many sessions that touches; changes nothing |
//! | reload, rollback | `daemon/configs.rs`, `daemon/examine.rs`, `daemon/live.rs`, `daemon/history.rs` | all that can fail first (judge, resolve, bind), then one store of the table |
//! | sockets | `daemon/listening.rs`, `session/orders.rs`, `daemon/endpoint.rs` | which stay, come and go; workers are sent new ones; the admin endpoint's own |
//! | listener | `daemon/parking.rs` | taken out: its sockets stop listening and keep their addresses |
//! | backend | `daemon/control.rs`, `pool/adjust.rs` | an operator's word, on top of every config; kept over restarts by `daemon/state_file.rs` |
//! | sessions | [`listing`], `session/listing.rs`, `daemon/sessions.rs` | who there is, asked of each worker; one of them ended |
//! | upgrade | `daemon/upgrade/`, `daemon/inherit.rs` | a successor takes sockets, knowledge and place; `daemon/fd_store.rs` keeps sockets over restarts |
//!
//! Who the process is while it serves is decided once, before any thread begins: `daemon/privileges.rs`,
//! `daemon/landlock.rs`. From the shell, `cli/client.rs` asks the same endpoint as everybody.
//!
//! # Invariants
//!
//! 1. No false end: a FIN is sent only for a FIN; every other end is a reset, after what was read was delivered.
//!    A [`net::stream::Stream`] resets unless it is closed in order, so that neither a panic nor kill -9 can make a cut
//!    look complete.
//! 2. Half-close works both ways, with a timer that bytes reset.
//! 3. Accepting never ends; a broken listening socket is bound again.
//! 4. One session harms one session: a panic is one reset and a counter.
//! 5. Memory is bounded: a slow reader throttles its peer, an idle session holds neither buffer nor pipe, and of
//!    clients that wait for a backend no more is read than the pool says.
//! 6. A bad config never replaces a good one, and every mistake in it is named at once. What can fail is done before
//!    anything changes; then all changes at once.
//! 7. Nothing established is cut before the drain deadline, or the last part before it in which all go evenly, nor by a
//!    new config, and the accept queues are emptied before they close, also those of a worker that is stuck. A socket
//!    that stays is never closed.
//! 8. Log, disk and metrics failures never touch traffic: bounded queues that drop and count.
//! 9. Counts return to zero: permits, slots, trials, sessions, pipes, places in a queue and in a hold are guards.
//! 10. Finding a backend takes no longer than the pool's budget, whatever fails, with at most two connects at once. A
//!     wait in the queue or in a hold comes on top, with a bound of its own.
//! 11. Nothing is sent to a second backend unless the pool says so, nor after the first byte of an answer.
//! 12. What this host lacks, and what a client does, never counts against a backend.
//! 13. No maximum is exceeded, however many threads come at once, and a reserve is there whatever the others do. The
//!     admin endpoint and the probes are under none.
//! 14. Whoever is refused has cost nothing of what lies behind: at the gate no pool, in shedding and queue no backend.
//!     A dry run changes nobody's fate.
//! 15. Nothing is read before the backend is known unless a route, or the key of a hash, depends on it; then within a
//!     time and a size, and it goes on byte for byte.
//! 16. Where a client goes depends on the config, the members and the client alone: no clock, no count and no dice
//!     in routes, shares and keys, so that each node says the same. Who has no address (on a unix socket) goes by
//!     chance.
//! 17. Nobody is believed to be somebody else but by a header from a proxy that the config trusts.
//! 18. Privileges are given up before the first thread begins, so that every thread has the same and none keeps more.
//! 19. While a process takes another one's place, somebody accepts from each queue at each moment, and until it has
//!     said that it does, nothing of the other one has changed.
//! 20. What an operator has said no other hand and no new config undoes. Each change is made once, by somebody who may,
//!     and is one line in the log.
//!
//! A unix socket knows no reset: its peer sees an end of file where a TCP peer would see one.

pub mod admin;
pub mod admission;
pub mod backoff;
pub mod cli;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod drain;
pub mod every;
pub mod health;
pub mod listing;
pub mod log;
pub mod metrics;
pub mod name;
pub mod net;
pub mod pool;
pub mod rng;
pub mod session;
pub mod sys;
pub mod table;
