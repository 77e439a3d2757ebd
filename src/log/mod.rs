//! What tidegate writes about itself: the operational log on stderr, and the access log with a line a session.
//!
//! Owns both formats, their queues and their writer threads. Invariant: nobody who logs ever waits. A line goes
//! into a bounded queue (`queue`) that a thread of its own empties into the target (`target`); what doesn't fit or
//! can't be written is given up and counted (`tidegate_log_dropped_total`). No control character of a client, a
//! name or an error text reaches a target as such (`escape`). The access log is `access`, one line of it is `line`; the
//! fields of the operational log are `fields`.
//!
//! After [`init`], nothing may use `print!` or `eprint!`: they wait on a blocked pipe and panic on a full disk.

mod access;
mod escape;
mod fields;
mod line;
mod queue;
mod target;

pub use access::{AccessLog, AccessWriter};
pub use line::Line;
pub use queue::Writer;

use crate::config::{Format, Level, Log};
use crate::metrics::{LogKind, Metrics};
use fields::Fields;
use queue::{Chunk, Limits, Queue};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io;
use std::panic::PanicHookInfo;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use target::Target;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Registry, reload};

/// What the operational log may hold back for a slow stderr: far more than it says in a bad minute.
const LIMITS: Limits = Limits { chunks: 4_096, bytes: 1 << 20 };

/// How long a stop waits for what is still queued in a log.
const FLUSH: Duration = Duration::from_secs(1);

/// Begins the operational log of the process, and has panics logged and counted. Nothing is written before
/// [`LogGuard::start`], or the guard's end. Fails if a log was begun before.
pub fn init(config: &Log, metrics: &Arc<Metrics>) -> io::Result<LogGuard> {
    let dropped = metrics.log_dropped(LogKind::Ops).clone();
    // A failed write to stderr can't be told on stderr; it is counted.
    let (queue, writer) = Queue::new("log", LIMITS, Target::stderr(), dropped, |_| ());
    let (subscriber, filter) = subscriber(config, queue.clone());
    tracing::subscriber::set_global_default(subscriber).map_err(io::Error::other)?;
    let _ = FILTER.set(filter);
    let panics = metrics.panics.clone();
    std::panic::set_hook(Box::new(move |info| {
        panics.inc();
        log_panic(info);
    }));
    Ok(LogGuard { queue, writer: Some(writer) })
}

/// Keeps the operational log. When it goes, what is queued is written, but for a bounded time; later lines are lost.
#[must_use = "dropping it ends the log"]
#[derive(Debug)]
pub struct LogGuard {
    queue: Queue,
    /// Until it is started.
    writer: Option<Writer>,
}

impl LogGuard {
    /// Starts the thread that writes. Fails if the system has none to give.
    pub fn start(&mut self) -> io::Result<()> {
        self.writer.take().map_or(Ok(()), Writer::start)
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        // What ended the start before its thread was there is said all the same.
        let _ = self.start();
        self.queue.close(FLUSH);
    }
}

/// Says how much the operational log of the process says from now on.
pub fn set_level(level: Level) {
    if let Some(filter) = FILTER.get() {
        // It fails only for a subscriber that is gone.
        let _ = filter.reload(filter_of(level));
    }
}

/// The filter of the log that the process has.
static FILTER: OnceLock<Filter> = OnceLock::new();

type Filter = reload::Handle<LevelFilter, Registry>;

fn filter_of(level: Level) -> LevelFilter {
    match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    }
}

/// The filter lies beneath the format, so that what is too fine costs no more than a look at one atomic.
fn subscriber(config: &Log, queue: Queue) -> (Box<dyn Subscriber + Send + Sync>, Filter) {
    let (filter, handle) = reload::Layer::new(filter_of(config.level));
    let registry = Registry::default().with(filter);
    let layer = tracing_subscriber::fmt::layer()
        .fmt_fields(Fields)
        .with_target(false)
        .with_ansi(false)
        // `escape` knows more, and keeps JSON valid.
        .with_ansi_sanitization(false)
        // The library would tell of them by `eprintln!`.
        .log_internal_errors(false)
        .with_writer(Lines { queue });
    let subscriber: Box<dyn Subscriber + Send + Sync> = match config.format {
        Format::Text => Box::new(registry.with(layer)),
        Format::Json => {
            Box::new(registry.with(layer.json().flatten_event(true).with_current_span(false).with_span_list(false)))
        }
    };
    (subscriber, handle)
}

fn log_panic(info: &PanicHookInfo<'_>) {
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or("(not a text)");
    let location = info.location().map(ToString::to_string);
    let thread = std::thread::current();
    let backtrace = Backtrace::capture();
    // Only with RUST_BACKTRACE set.
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(panic = text, location, thread = thread.name(), backtrace, "panic");
}

/// Makes each event's text a chunk of the queue.
#[derive(Clone)]
struct Lines {
    queue: Queue,
}

impl io::Write for Lines {
    /// The subscriber hands over each event as a whole.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let mut line = String::with_capacity(text.len() + 1);
        escape::push_printable(&mut line, text);
        line.push('\n');
        self.queue.push(Chunk { text: line, lines: 1 });
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests;
