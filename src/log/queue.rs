//! The bounded queue between those who log and the thread that writes.
//!
//! Owns the limits, the count of lines given up and the thread. Invariants: `push` never waits for the target (the
//! lock is held for a few instructions, never during a write); what is queued and being written together stays
//! within the limits; a line is either written or counted as dropped. The thread ends when the queue is closed or
//! its last handle is gone, after what was queued has been written.
//!
//! Not `tracing-appender`: it bounds lines but not bytes, doesn't count what could not be written, and at a stop
//! with a full queue it prints to stdout, which may itself be what is stuck.

use super::target::{Lost, Target};
use crate::metrics::{Counter, Series};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Whole lines that are written together.
#[derive(Debug)]
pub struct Chunk {
    pub text: String,
    pub lines: u64,
}

/// What a queue holds at most, whichever is reached first.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub chunks: usize,
    pub bytes: usize,
}

/// A handle to a queue and its thread.
#[derive(Debug)]
pub struct Queue(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Told when there is a chunk, or no more will come.
    work: Condvar,
    /// Told when all is written.
    idle: Condvar,
    limits: Limits,
    dropped: Series<Counter>,
}

/// What writes, until its thread is started: a thread keeps the privileges of the moment. Until then lines wait in the
/// queue, within its limits.
#[must_use = "without it, nothing is written"]
pub struct Writer {
    thread: &'static str,
    shared: Arc<Shared>,
    target: Target,
    on_error: Box<dyn Fn(&Lost) + Send>,
}

#[derive(Debug, Default)]
struct State {
    chunks: VecDeque<Chunk>,
    /// Of all chunks that aren't written yet, the one being written included.
    bytes: usize,
    closed: bool,
    handles: usize,
}

impl Queue {
    /// A queue, and what is to write it to `target`, telling `on_error` of each write that fails.
    pub fn new(
        thread: &'static str,
        limits: Limits,
        target: Target,
        dropped: Series<Counter>,
        on_error: impl Fn(&Lost) + Send + 'static,
    ) -> (Self, Writer) {
        let state = Mutex::new(State { handles: 1, ..State::default() });
        let shared = Arc::new(Shared { state, work: Condvar::new(), idle: Condvar::new(), limits, dropped });
        (Self(Arc::clone(&shared)), Writer { thread, shared, target, on_error: Box::new(on_error) })
    }

    /// Hands over a chunk, or drops and counts it.
    pub fn push(&self, chunk: Chunk) {
        if chunk.text.is_empty() {
            return;
        }
        let mut state = self.0.lock();
        let limits = self.0.limits;
        let fits = state.chunks.len() < limits.chunks && state.bytes + chunk.text.len() <= limits.bytes;
        if state.closed || !fits {
            drop(state);
            self.0.dropped.inc_by(chunk.lines);
            return;
        }
        state.bytes += chunk.text.len();
        state.chunks.push_back(chunk);
        drop(state);
        self.0.work.notify_one();
    }

    /// Takes nothing more, and waits until what is queued is written, but no longer than `wait`. What is still
    /// queued then is counted as dropped.
    pub fn close(&self, wait: Duration) {
        let mut state = self.0.lock();
        state.closed = true;
        self.0.work.notify_all();
        let waited = self.0.idle.wait_timeout_while(state, wait, |state| state.bytes > 0);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let left: Vec<Chunk> = state.chunks.drain(..).collect();
        state.bytes -= left.iter().map(|chunk| chunk.text.len()).sum::<usize>();
        drop(state);
        self.0.dropped.inc_by(left.iter().map(|chunk| chunk.lines).sum());
    }
}

impl Writer {
    /// Starts the thread. Fails if the system has none to give.
    pub fn start(self) -> io::Result<()> {
        let Self { thread, shared, mut target, on_error } = self;
        std::thread::Builder::new().name(thread.into()).spawn(move || {
            while let Some(chunk) = shared.next() {
                if let Err(lost) = target.write(&chunk.text, Instant::now()) {
                    shared.dropped.inc_by(lost.lines);
                    on_error(&lost);
                }
                shared.written(chunk.text.len());
            }
        })?;
        Ok(())
    }

    /// Gives a file that is ours to this user and group, who then may open it again. Fails if that isn't allowed.
    pub fn give_to(&self, user: u32, group: u32) -> io::Result<()> {
        self.target.give_to(user, group)
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("thread", &self.thread).field("target", &self.target).finish_non_exhaustive()
    }
}

impl Clone for Queue {
    fn clone(&self) -> Self {
        self.0.lock().handles += 1;
        Self(Arc::clone(&self.0))
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.handles -= 1;
        if state.handles == 0 {
            state.closed = true;
            self.0.work.notify_all();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next chunk; `None` once the queue is closed and empty.
    fn next(&self) -> Option<Chunk> {
        let waited = self.work.wait_while(self.lock(), |state| state.chunks.is_empty() && !state.closed);
        waited.unwrap_or_else(PoisonError::into_inner).chunks.pop_front()
    }

    fn written(&self, bytes: usize) {
        let mut state = self.lock();
        state.bytes -= bytes;
        if state.bytes == 0 {
            self.idle.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{LogKind, Metrics};
    use std::io::{PipeReader, Read};

    const LIMITS: Limits = Limits { chunks: 4, bytes: 300_000 };

    fn counter() -> Series<Counter> {
        Metrics::new().unwrap().log_dropped(LogKind::Ops).clone()
    }

    fn chunk(text: &str) -> Chunk {
        Chunk { text: text.to_owned(), lines: text.matches('\n').count() as u64 }
    }

    /// A line that no pipe takes at once, so that the writer is stuck in it until the pipe is read.
    fn stuck() -> Chunk {
        chunk(&format!("{}\n", "x".repeat(200_000)))
    }

    /// A queue whose target is a pipe.
    fn piped(limits: Limits) -> (Queue, PipeReader, Series<Counter>) {
        let (reader, writer) = io::pipe().unwrap();
        let dropped = counter();
        let (queue, writer) = Queue::new("test", limits, Target::from_fd(writer.into()), dropped.clone(), |_| ());
        writer.start().unwrap();
        (queue, reader, dropped)
    }

    fn everything(mut reader: PipeReader) -> String {
        let mut all = String::new();
        reader.read_to_string(&mut all).unwrap();
        all
    }

    #[test]
    fn what_is_pushed_is_written_in_order() {
        let (queue, reader, dropped) = piped(LIMITS);
        queue.push(chunk("a\nb\n"));
        queue.clone().push(chunk("c\n"));
        queue.push(chunk("d\n"));
        drop(queue);
        assert_eq!(everything(reader), "a\nb\nc\nd\n");
        assert_eq!(dropped.get(), 0);
    }

    #[test]
    fn what_comes_before_the_thread_waits_for_it() {
        let (reader, writer) = io::pipe().unwrap();
        let (queue, writer) = Queue::new("test", LIMITS, Target::from_fd(writer.into()), counter(), |_| ());
        queue.push(chunk("early\n"));
        writer.start().unwrap();
        queue.push(chunk("late\n"));
        drop(queue);
        assert_eq!(everything(reader), "early\nlate\n");
    }

    /// A pipe that nobody reads: pushing goes on, and every line is accounted for.
    #[test]
    fn a_blocked_target_costs_lines_and_nothing_else() {
        let (queue, reader, dropped) = piped(LIMITS);
        queue.push(stuck());
        for _ in 0..1_000 {
            queue.push(chunk("two\nlines\n"));
        }
        let (chunks, bytes) = {
            let state = queue.0.lock();
            (state.chunks.len(), state.bytes)
        };
        assert!(chunks <= LIMITS.chunks && bytes <= LIMITS.bytes, "{chunks} chunks, {bytes} bytes");
        assert!(dropped.get() >= 2 * (1_000 - LIMITS.chunks as u64), "{}", dropped.get());
        drop(queue);
        let lines = everything(reader).lines().count() as u64;
        assert_eq!(lines + dropped.get(), 1 + 2_000);
    }

    #[test]
    fn bytes_are_bounded_too() {
        let (queue, reader, dropped) = piped(Limits { chunks: 4, bytes: 3 });
        queue.push(chunk("four\n"));
        queue.push(chunk("a\n"));
        drop(queue);
        assert_eq!((everything(reader).as_str(), dropped.get()), ("a\n", 1));
    }

    #[test]
    fn closing_waits_until_all_is_written_and_takes_nothing_more() {
        let (queue, reader, dropped) = piped(Limits { chunks: 2_000, ..LIMITS });
        let reading = std::thread::spawn(move || everything(reader));
        for _ in 0..1_000 {
            queue.push(chunk("a\n"));
        }
        queue.close(Duration::from_secs(60));
        assert_eq!((queue.0.lock().bytes, dropped.get()), (0, 0));
        queue.push(chunk("late\n"));
        assert_eq!(dropped.get(), 1);
        assert_eq!(reading.join().unwrap(), "a\n".repeat(1_000));
    }

    #[test]
    fn closing_does_not_wait_for_a_blocked_target() {
        let (queue, reader, dropped) = piped(LIMITS);
        queue.push(stuck());
        queue.push(chunk("a\nb\n"));
        queue.close(Duration::from_millis(1));
        drop(queue);
        let lines = everything(reader).lines().count() as u64;
        assert_eq!(lines + dropped.get(), 3);
        assert!(dropped.get() >= 2, "{}", dropped.get());
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_told() {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let dropped = counter();
        let (told, tell) = std::sync::mpsc::channel();
        let on_error = move |lost: &Lost| _ = told.send(lost.error.kind());
        let (queue, writer) = Queue::new("test", LIMITS, Target::from_fd(full.into()), dropped.clone(), on_error);
        writer.start().unwrap();
        queue.push(chunk("a\nb\n"));
        queue.close(Duration::from_secs(60));
        assert_eq!(dropped.get(), 2);
        assert_eq!(tell.recv().unwrap(), io::ErrorKind::StorageFull);
    }
}
