//! The access log: a line for each session, from all workers into one target.
//!
//! Each worker batches its lines in a buffer of its own and hands over whole buffers, so that the queue's lock is
//! taken once for dozens of sessions. Lines of one worker stay in order.

use super::FLUSH;
use super::line::Line;
use super::queue::{Chunk, Limits, Queue, Writer};
use super::target::{Lost, Target};
use crate::config::{Access, Format, Log};
use crate::every::Every;
use crate::metrics::{LogKind, Metrics};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A worker's buffer is handed over at this size.
const BATCH: usize = 8 << 10;

/// Of a buffer, so that the line that fills it rarely makes it grow.
const CAPACITY: usize = BATCH + (1 << 10);

/// What the target may fall behind: about a second of the most sessions that one machine can do.
const LIMITS: Limits = Limits { chunks: 4_096, bytes: 8 << 20 };

/// How often at most the operational log is told that the access log can't be written.
const TELL: Duration = Duration::from_secs(10);

/// A handle to the access log.
#[derive(Clone, Debug)]
pub struct AccessLog {
    queue: Queue,
    format: Format,
}

impl AccessLog {
    /// Opens what `[log] access` names, with what is to write it once started; `None` if it is off.
    pub fn open(config: &Log, metrics: &Arc<Metrics>) -> io::Result<Option<(Self, Writer)>> {
        let target = match &config.access {
            Access::Off => return Ok(None),
            Access::Stdout => Target::stdout()?,
            Access::Stderr => Target::stderr(),
            Access::File(path) => Target::path(path)
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?,
        };
        Ok(Some(Self::new(target, config.format, metrics)))
    }

    fn new(target: Target, format: Format, metrics: &Arc<Metrics>) -> (Self, Writer) {
        let dropped = metrics.log_dropped(LogKind::Access).clone();
        let tell = Every::new(TELL, Instant::now());
        let on_error = move |lost: &Lost| {
            if tell.is_due(Instant::now()) {
                tracing::warn!(error = %lost.error, lost_lines = lost.lines, "the access log can't be written");
            }
        };
        let (queue, writer) = Queue::new("access-log", LIMITS, target, dropped, on_error);
        (Self { queue, format }, writer)
    }

    /// One for each worker.
    #[must_use]
    pub fn writer(&self) -> AccessWriter {
        AccessWriter { log: self.clone(), buffer: String::with_capacity(CAPACITY), complete: 0, lines: 0 }
    }

    /// Writes what was handed over, waiting for a bounded time; later lines are lost. For the end of the process,
    /// when the writers are gone.
    pub fn close(&self) {
        self.queue.close(FLUSH);
    }
}

/// A worker's buffer of lines. It hands them over when it is full, flushed or dropped.
#[derive(Debug)]
pub struct AccessWriter {
    log: AccessLog,
    buffer: String,
    /// Up to here, the buffer holds whole lines.
    complete: usize,
    lines: u64,
}

impl AccessWriter {
    pub fn line(&mut self, write: impl FnOnce(&mut Line<'_>)) {
        // A panic while a line was being written leaves half of it.
        self.buffer.truncate(self.complete);
        let mut line = Line::begin(&mut self.buffer, self.log.format);
        write(&mut line);
        line.end();
        self.complete = self.buffer.len();
        self.lines += 1;
        if self.complete >= BATCH {
            self.flush();
        }
    }

    /// Hands over what is buffered. Never waits.
    pub fn flush(&mut self) {
        if self.lines == 0 {
            return;
        }
        self.buffer.truncate(self.complete);
        let text = std::mem::replace(&mut self.buffer, String::with_capacity(CAPACITY));
        self.log.queue.push(Chunk { text, lines: std::mem::take(&mut self.lines) });
        self.complete = 0;
    }
}

impl Drop for AccessWriter {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{PipeReader, Read};
    use std::panic::{AssertUnwindSafe, catch_unwind};

    struct Piped {
        log: AccessLog,
        reader: PipeReader,
        metrics: Arc<Metrics>,
    }

    impl Piped {
        fn new(format: Format) -> Self {
            let (reader, writer) = io::pipe().unwrap();
            let metrics = Arc::new(Metrics::new().unwrap());
            let (log, writer) = AccessLog::new(Target::from_fd(writer.into()), format, &metrics);
            writer.start().unwrap();
            Self { log, reader, metrics }
        }

        /// All lines, once the log is closed.
        fn finish(self) -> String {
            let Self { log, mut reader, metrics } = self;
            log.close();
            assert_eq!(metrics.log_dropped(LogKind::Access).get(), 0);
            let mut all = String::new();
            reader.read_to_string(&mut all).unwrap();
            all
        }
    }

    #[test]
    fn lines_wait_for_a_flush_or_a_full_buffer() {
        let mut piped = Piped::new(Format::Text);
        let mut writer = piped.log.writer();
        writer.line(|line| line.number("n", 1));
        assert_eq!(writer.buffer, "n=1\n");
        writer.flush();
        assert_eq!(writer.buffer, "");
        let mut first = [0; 4];
        piped.reader.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"n=1\n");

        let long = "x".repeat(100);
        let mut lines = 0;
        while lines == 0 || !writer.buffer.is_empty() {
            writer.line(|line| line.text("x", &long));
            lines += 1;
        }
        assert_eq!(lines, BATCH.div_ceil("x=\n".len() + long.len()));
        writer.line(|line| line.number("n", 2));
        drop(writer);
        assert_eq!(piped.finish(), format!("{}n=2\n", format!("x={long}\n").repeat(lines)));
    }

    #[test]
    fn half_a_line_is_never_written() {
        let piped = Piped::new(Format::Json);
        let mut writer = piped.log.writer();
        writer.line(|line| line.number("n", 1));
        let panicking = catch_unwind(AssertUnwindSafe(|| {
            writer.line(|line| {
                line.number("n", 2);
                panic!("on purpose");
            });
        }));
        assert!(panicking.is_err());
        writer.line(|line| line.number("n", 3));
        drop(writer);
        assert_eq!(piped.finish(), "{\"n\":1}\n{\"n\":3}\n");
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let config = Log { access: Access::File("/proc/none/access.log".into()), ..Log::default() };
        let error = AccessLog::open(&config, &Arc::new(Metrics::new().unwrap())).unwrap_err();
        assert_eq!(error.to_string(), "/proc/none/access.log: No such file or directory (os error 2)");
        assert!(AccessLog::open(&Log::default(), &Arc::new(Metrics::new().unwrap())).unwrap().is_none());
    }

    #[test]
    fn a_full_disk_costs_lines_and_nothing_else() {
        let config = Log { access: Access::File("/dev/full".into()), ..Log::default() };
        let metrics = Arc::new(Metrics::new().unwrap());
        let (log, writer) = AccessLog::open(&config, &metrics).unwrap().unwrap();
        writer.start().unwrap();
        let mut writer = log.writer();
        for _ in 0..3 {
            writer.line(|line| line.number("n", 1));
        }
        drop(writer);
        log.close();
        assert_eq!(metrics.log_dropped(LogKind::Access).get(), 3);
    }
}
