//! One direction of a session: bytes from one end to the other, by copying or by splice(2).
//!
//! Owns what was read and not yet written (a small buffer or a pipe, never both, and neither while idle) and how
//! far the direction has come. Decides nothing about the session: it reports what stopped it. Invariants: nothing
//! is read while something waits to be written, so a slow reader throttles its peer; an end of file is passed on
//! only after everything before it, and only if it is one. Next: `entry`, which turns reports into an end.

use super::Fin;
use super::pipe::{Pipe, Pipes};
use crate::config::RelayMode;
use crate::net::stream::{Family, Stream};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::pipe::SpliceFlags;

/// What a worker's flows share.
pub struct Shared {
    /// Bytes pass through here within one call; nothing stays in it.
    pub buffer: Box<[u8]>,
    pub pipes: Pipes,
    /// Bytes that sinks have taken in this turn.
    pub moved: usize,
    /// Times that a flow wanted to splice and had to copy for want of a pipe.
    pub fallbacks: u64,
    /// A direction splices once big reads have moved more than this many bytes in a row.
    splice_after: u32,
}

impl Shared {
    pub fn new(pipes: Pipes, mode: RelayMode) -> Self {
        let splice_after = match mode {
            RelayMode::Auto => SPLICE_AFTER,
            // No count exceeds it.
            RelayMode::Copy => u32::MAX,
            RelayMode::Splice => 0,
        };
        Self { buffer: vec![0; CHUNK].into(), pipes, moved: 0, fallbacks: 0, splice_after }
    }
}

/// The size of the shared buffer.
pub const CHUNK: usize = 64 * 1024;
/// Splicing pays once big reads have moved 128 KiB in a row, which is more than this: a pipe costs short connections
/// three calls more.
const SPLICE_AFTER: u32 = 128 * 1024 - 1;
/// A read of at least this much is big.
const BIG: usize = 16 * 1024;
/// What is read at once while the sink is slow or no pipe is to be had, so that what it can't take stays small.
const THROTTLED: usize = 16 * 1024;

const SPLICE_FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

/// One end of a session: its socket, and what epoll has said of it since the last call that would block.
#[expect(clippy::struct_excessive_bools, reason = "each is one fact that epoll reports, and all combine freely")]
pub struct End {
    /// `None` once it is closed while the session still has something to do for the other end.
    pub stream: Option<Stream>,
    pub readable: bool,
    pub writable: bool,
    /// The peer has sent a FIN, or is gone: a short read does not mean that nothing more will come.
    pub hung_up: bool,
    /// The peer marked a byte as urgent, at which reads stop short: only EAGAIN means drained.
    pub urgent: bool,
    /// Bytes went in or out of it by splice(2), which can take the report of a reset without a word.
    pub spliced: bool,
    /// Our FIN has been sent to it: a connection that ends in order from here on is torn down as well.
    pub fin_sent: bool,
    /// The socket has an error pending or has reported one.
    pub failed: bool,
}

impl End {
    pub fn new(stream: Stream) -> Self {
        Self {
            stream: Some(stream),
            readable: false,
            writable: true,
            hung_up: false,
            urgent: false,
            spliced: false,
            fin_sent: false,
            failed: false,
        }
    }

    /// Whether a short read may leave something behind: a unix socket stops short where descriptors were sent along.
    fn stops_short(&self) -> bool {
        self.hung_up || self.urgent || self.stream.as_ref().is_some_and(|stream| stream.family() == Family::Unix)
    }

    /// Whether an end of file is no FIN of the peer's. The kernel tells of a reset once, to whoever asks first, and
    /// that may be a splice(2) that reports the bytes before it, or the send(2) whose failure makes us look for what
    /// the peer had sent before; a later read finds an end of file.
    fn end_of_file_is_false(&self) -> bool {
        (self.spliced || self.failed) && !self.fin_sent && self.stream.as_ref().is_some_and(Stream::is_torn_down)
    }
}

/// The two ends of a flow and what it may use, for one call of [`Flow::pump`].
pub struct Link<'a> {
    pub source: &'a mut End,
    pub sink: &'a mut End,
    pub shared: &'a mut Shared,
    /// The other direction is done.
    pub is_last: bool,
    /// Bytes that may be moved before others get their turn; read and spliced in pieces of at most this.
    pub budget: usize,
    /// Bytes that may still be read, however large the budget is.
    pub allowance: usize,
    /// Bytes that the sink has taken in this call.
    pub moved: usize,
}

/// How far a direction has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Open,
    /// The source's FIN was read; what came before it may still be on its way.
    Ending,
    /// The FIN was passed on.
    Done,
    /// Nothing more is read; what was read is still delivered.
    Cut,
}

/// Why [`Flow::pump`] stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// One of the ends isn't ready, or there is nothing left to do.
    Blocked,
    /// The source's FIN was passed on just now.
    Ended,
    /// The budget is spent; there is more.
    Budget,
    /// The allowance is spent; there may be more.
    Starved,
    SourceFailed(Errno),
    SinkFailed(Errno),
}

/// One direction, with what was read and not yet written.
pub struct Flow {
    stage: Stage,
    /// The sink was slower than the source the last time.
    throttled: bool,
    /// The budget or the allowance ended the last call, not the source.
    cut_short: bool,
    /// Bytes of big reads in a row.
    streak: u32,
    /// Bytes in `pipe`.
    piped: u32,
    leftover: Option<Box<Leftover>>,
    pipe: Option<Box<Pipe>>,
}

struct Leftover {
    bytes: Box<[u8]>,
    written: usize,
}

impl Flow {
    pub fn new() -> Self {
        Self { stage: Stage::Open, throttled: false, cut_short: false, streak: 0, piped: 0, leftover: None, pipe: None }
    }

    /// One in which something has happened already: bytes that its sink has not taken yet, and the source's FIN.
    pub fn resumed(pending: Box<[u8]>, fin: Fin) -> Self {
        let leftover = if pending.is_empty() { None } else { Some(Box::new(Leftover { bytes: pending, written: 0 })) };
        let stage = match fin {
            Fin::Awaited => Stage::Open,
            Fin::Read => Stage::Ending,
            Fin::PassedOn => Stage::Done,
        };
        Self { stage, leftover, ..Self::new() }
    }

    pub fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Nothing more will be written: all was delivered to the kernel, and the FIN, if there was one, passed on.
    pub fn is_settled(&self) -> bool {
        matches!(self.stage, Stage::Done | Stage::Cut) && self.holds_nothing()
    }

    /// Reads no more; what was read is still delivered.
    pub fn cut(&mut self) {
        if self.stage == Stage::Open {
            self.stage = Stage::Cut;
        }
    }

    /// Its sink is gone: forgets what it holds.
    pub fn abandon(&mut self) {
        *self = Self { stage: if self.is_done() { Stage::Done } else { Stage::Cut }, ..Self::new() };
    }

    /// Whether it is in the middle of a large transfer, by how it has read of late.
    pub fn is_bulk(&self) -> bool {
        self.streak > SPLICE_AFTER
    }

    fn holds_nothing(&self) -> bool {
        self.leftover.is_none() && self.piped == 0
    }

    /// Moves bytes until an end blocks or the budget is spent.
    pub fn pump(&mut self, link: &mut Link<'_>) -> Stop {
        loop {
            if let Err(stop) = self.deliver(link) {
                return stop;
            }
            match self.stage {
                Stage::Open => {}
                Stage::Ending => return self.pass_on_fin(link),
                Stage::Done | Stage::Cut => return Stop::Blocked,
            }
            if !link.source.readable || !link.sink.writable {
                return Stop::Blocked;
            }
            if link.allowance == 0 || link.moved >= link.budget {
                self.cut_short = true;
                return if link.allowance == 0 { Stop::Starved } else { Stop::Budget };
            }
            if let Err(stop) = self.fetch(link) {
                return stop;
            }
        }
    }

    /// Writes what was read before. `Ok` only if nothing is left of it.
    fn deliver(&mut self, link: &mut Link<'_>) -> Result<(), Stop> {
        while !self.holds_nothing() {
            let Some(sink) = link.sink.stream.as_ref() else {
                self.abandon();
                return Err(Stop::Blocked);
            };
            if !link.sink.writable {
                return Err(Stop::Blocked);
            }
            let written = match (&self.leftover, &self.pipe) {
                (Some(leftover), _) => rustix::net::send(sink, leftover.rest(), SendFlags::NOSIGNAL),
                (None, Some(pipe)) => {
                    link.sink.spliced = true;
                    rustix::pipe::splice(&pipe.read, None, sink, None, self.piped as usize, SPLICE_FLAGS)
                }
                (None, None) => unreachable!("bytes that are counted as piped are in a pipe"),
            };
            match written {
                Ok(bytes) => {
                    link.moved += bytes;
                    self.delivered(bytes, link.shared);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    link.sink.writable = false;
                    self.throttled = true;
                    return Err(Stop::Blocked);
                }
                Err(error) => return Err(Stop::SinkFailed(error)),
            }
        }
        Ok(())
    }

    fn delivered(&mut self, bytes: usize, shared: &mut Shared) {
        if let Some(leftover) = &mut self.leftover {
            leftover.written += bytes;
            if leftover.rest().is_empty() {
                self.leftover = None;
            }
        } else {
            self.piped -= bytes as u32;
            if self.piped == 0
                && let Some(pipe) = self.pipe.take()
            {
                shared.pipes.give_back(pipe);
            }
        }
    }

    /// Reads one chunk and, when copying, offers it to the sink at once.
    fn fetch(&mut self, link: &mut Link<'_>) -> Result<(), Stop> {
        // splice(2) never gets past an urgent byte.
        let bulk = self.streak > link.shared.splice_after && !link.source.urgent;
        let pipe = if bulk { link.shared.pipes.take() } else { None };
        let fetched = if let Some(pipe) = pipe {
            match self.splice(link, pipe) {
                Ok(Fetched::EndOfFile) => {
                    // At an urgent byte of which no event has told yet, the kernel says "end of file" as well, once the
                    // FIN behind it is there: only a read tells the two apart.
                    self.streak = 0;
                    self.copy(link, CHUNK)
                }
                fetched => fetched,
            }
        } else {
            link.shared.fallbacks += u64::from(bulk);
            self.copy(link, if bulk || self.throttled { THROTTLED } else { CHUNK })
        };
        match fetched {
            Ok(Fetched::Bytes) | Err(Failure::Source(Errno::INTR)) => Ok(()),
            Ok(Fetched::EndOfFile) if link.source.end_of_file_is_false() => Err(Stop::SourceFailed(Errno::CONNRESET)),
            Ok(Fetched::EndOfFile) => {
                self.stage = Stage::Ending;
                Ok(())
            }
            Err(Failure::Source(Errno::AGAIN)) => {
                link.source.readable = false;
                if !std::mem::take(&mut self.cut_short) && link.moved < BIG {
                    // It trickles: copying is as cheap, and notices a drained socket without a second call.
                    self.streak = 0;
                }
                Err(Stop::Blocked)
            }
            Err(Failure::Source(error)) => Err(Stop::SourceFailed(error)),
            Err(Failure::Sink(error)) => Err(Stop::SinkFailed(error)),
        }
    }

    fn splice(&mut self, link: &mut Link<'_>, pipe: Box<Pipe>) -> Result<Fetched, Failure> {
        let Some(source) = link.source.stream.as_ref() else { return Err(Failure::Source(Errno::AGAIN)) };
        link.source.spliced = true;
        // The pipe is empty here, so EAGAIN can only mean an empty socket.
        let most = link.budget.min(link.allowance);
        match rustix::pipe::splice(source, None, &pipe.write, None, most, SPLICE_FLAGS) {
            Ok(bytes) if bytes > 0 => {
                link.allowance -= bytes;
                self.piped = bytes as u32;
                self.pipe = Some(pipe);
                Ok(Fetched::Bytes)
            }
            nothing => {
                link.shared.pipes.give_back(pipe);
                nothing.map(|_| Fetched::EndOfFile).map_err(Failure::Source)
            }
        }
    }

    fn copy(&mut self, link: &mut Link<'_>, limit: usize) -> Result<Fetched, Failure> {
        let (Some(source), Some(sink)) = (link.source.stream.as_ref(), link.sink.stream.as_ref()) else {
            return Err(Failure::Source(Errno::AGAIN));
        };
        let limit = limit.min(link.allowance);
        let buffer = &mut link.shared.buffer[..limit];
        let (read, _) = rustix::net::recv(source, &mut *buffer, RecvFlags::empty()).map_err(Failure::Source)?;
        if read == 0 {
            return Ok(Fetched::EndOfFile);
        }
        link.allowance -= read;
        if read < limit && !link.source.stops_short() {
            link.source.readable = false;
        }
        self.streak = if read >= BIG { self.streak.saturating_add(read as u32) } else { 0 };
        let written = match rustix::net::send(sink, &buffer[..read], SendFlags::NOSIGNAL) {
            Ok(bytes) => bytes,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(error) => return Err(Failure::Sink(error)),
        };
        link.moved += written;
        if written < read {
            self.leftover = Some(Box::new(Leftover { bytes: buffer[written..read].into(), written: 0 }));
        } else if link.moved >= CHUNK {
            // It has taken as much in one go as a whole piece.
            self.throttled = false;
        }
        Ok(Fetched::Bytes)
    }

    fn pass_on_fin(&mut self, link: &mut Link<'_>) -> Stop {
        // Where both directions are done the close(2) that follows sends the FIN.
        if !link.is_last
            && let Some(sink) = &link.sink.stream
            && let Err(error) = sink.send_fin()
        {
            self.stage = Stage::Cut;
            return Stop::SinkFailed(error);
        }
        link.sink.fin_sent = !link.is_last;
        self.stage = Stage::Done;
        Stop::Ended
    }
}

enum Fetched {
    Bytes,
    EndOfFile,
}

enum Failure {
    Source(Errno),
    Sink(Errno),
}

impl Leftover {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.written..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::relay::PipeBounds;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    fn end() -> (End, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let near = listener.accept().unwrap().0;
        near.set_nonblocking(true).unwrap();
        peer.set_nonblocking(true).unwrap();
        (End::new(Stream::new(near.into()).unwrap()), peer)
    }

    /// Pieces are small while the sink is slow, and whole again once it isn't.
    #[test]
    fn a_sink_is_slow_only_as_long_as_it_is() {
        let ((mut source, mut client), (mut sink, mut backend)) = (end(), end());
        let none = PipeBounds { count: 0, bytes: 0, largest: 0 };
        let mut shared = Shared::new(Pipes::new(none), RelayMode::Copy);
        let mut flow = Flow::new();
        let mut buffer = vec![7; 256 << 10];
        let mut until = |slow: bool, reads: bool| {
            for _ in 0..100_000 {
                while client.write(&buffer).is_ok() {}
                while reads && backend.read(&mut buffer).is_ok() {}
                (source.readable, sink.writable) = (true, true);
                let (source, sink, shared) = (&mut source, &mut sink, &mut shared);
                flow.pump(&mut Link {
                    source,
                    sink,
                    shared,
                    is_last: false,
                    budget: CHUNK,
                    allowance: usize::MAX,
                    moved: 0,
                });
                if flow.throttled == slow {
                    return;
                }
            }
            panic!("it never became slow: {slow}");
        };
        until(true, false);
        until(false, true);
        until(true, false);
    }
}
