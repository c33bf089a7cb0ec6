//! What the threads of a rank share: its connections, and what came over them.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, BufReader, IoSlice, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError, TryLockError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{MeshOptions, WRITE_SLICE, inbox::Queue};
use crate::comm::{
    CommError,
    bootstrap::{
        Report, Reports,
        wire::{Packer, Unpacker, nonsense},
    },
    cpu::{Countdown, Words},
};

/// A sign of life: a single byte, so that it is written whole or not at all.
const PING: u8 = 0;
const MEETING: u8 = 1;
pub(super) const FAILURE: u8 = 2;
const BYE: u8 = 3;
/// A message of a collective.
pub(super) const DATA: u8 = 4;

const READ_BUFFER_BYTES: usize = 1 << 16;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) rank: usize,
    pub(super) hosts: Vec<String>,
    pub(super) options: MeshOptions,
    /// By rank; none to itself.
    writers: Vec<Option<Mutex<TcpStream>>>,
    /// Who was heard since the last look.
    heard: Vec<AtomicBool>,
    state: Mutex<State>,
    /// Signalled with every change of the state.
    pub(super) changed: Condvar,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) reports: Reports,
    /// Ranks that said goodbye.
    pub(super) left: Vec<bool>,
    /// Number of the next meeting of each group.
    pub(super) turns: HashMap<Vec<usize>, u64>,
    /// The meetings that gather, by group and turn.
    pub(super) meetings: HashMap<(Vec<usize>, u64), Brought>,
    /// By number, then by sender, the messages that wait to be taken.
    pub(super) inboxes: HashMap<u64, Vec<Queue>>,
    pub(super) next_inbox: u64,
    /// Memory of messages that were taken.
    pub(super) spare: Vec<Words>,
}

impl State {
    /// Whether nothing more is to be expected of `peer`.
    pub(super) fn gave_up(&self, peer: usize) -> bool {
        self.left[peer] || self.reports.of(peer).is_some()
    }
}

/// What ranks have brought to a meeting: the call and the item of each.
type Brought = BTreeMap<usize, (String, Vec<u8>)>;

/// Why something was not written.
pub(in crate::comm) enum Unwritten {
    /// This or another rank failed, or the peer is gone.
    Failed,
    /// The peer took nothing within the limit.
    Late,
}

pub(super) fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    Packer::default().u8(kind).bytes(body).finish()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(
        rank: usize,
        hosts: Vec<String>,
        options: MeshOptions,
        streams: Vec<Option<TcpStream>>,
    ) -> Self {
        let world = hosts.len();
        let state = State {
            reports: Reports::new(world),
            left: vec![false; world],
            turns: HashMap::new(),
            meetings: HashMap::new(),
            inboxes: HashMap::new(),
            next_inbox: 0,
            spare: Vec::new(),
        };
        Self {
            rank,
            hosts,
            options,
            writers: streams.into_iter().map(|stream| stream.map(Mutex::new)).collect(),
            heard: (0..world).map(|_| AtomicBool::new(true)).collect(),
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(super) fn report(&self, rank: usize, report: Report) {
        self.lock().reports.add(rank, report);
        self.changed.notify_all();
    }

    /// A connection ended: a failure of the peer, unless it said goodbye.
    fn gone(&self, peer: usize, end: &io::Error) {
        let cause = match end.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                "its process ended".to_owned()
            }
            _ => format!("its connection failed ({end})"),
        };
        let mut state = self.lock();
        if !state.left[peer] {
            state.reports.add(peer, Report { cause, blames: None, spoken: false });
        }
        drop(state);
        self.changed.notify_all();
    }

    /// The failure of another rank, as this one's error: of all that is known, the one that the others follow from.
    pub(super) fn failure(&self, state: &State) -> Option<CommError> {
        let (first, _) = state.reports.first().filter(|(peer, _)| *peer != self.rank)?;
        let (peer, report) = state.reports.root(first).filter(|(peer, _)| *peer != self.rank)?;
        Some(CommError::PeerFailed { rank: self.rank, peer, cause: report.cause.clone() })
    }

    /// A reader's life: takes what `peer` says until it leaves or its connection ends.
    pub(super) fn listen_to(&self, peer: usize, stream: TcpStream) {
        let mut from = Unpacker(BufReader::with_capacity(READ_BUFFER_BYTES, stream));
        let end = loop {
            match self.take_frame(peer, &mut from) {
                Ok(()) => self.heard[peer].store(true, Ordering::Relaxed),
                Err(error) => break error,
            }
        };
        self.gone(peer, &end);
    }

    fn take_frame(&self, peer: usize, from: &mut Unpacker<impl Read>) -> io::Result<()> {
        match from.u8()? {
            PING => return Ok(()),
            DATA => self.receive(peer, from)?,
            kind => self.note(peer, kind, &from.bytes()?)?,
        }
        self.changed.notify_all();
        Ok(())
    }

    fn note(&self, peer: usize, kind: u8, body: &[u8]) -> io::Result<()> {
        let mut body = Unpacker(body);
        match kind {
            MEETING => {
                let (members, turn) = (body.numbers()?, body.u64()?);
                let brought = (body.text()?, body.bytes()?);
                self.lock().meetings.entry((members, turn)).or_default().insert(peer, brought);
            }
            FAILURE => {
                let blames = usize::try_from(body.u64()?).ok().filter(|&rank| rank < self.hosts.len());
                let report = Report { cause: body.text()?, blames, spoken: true };
                self.lock().reports.add(peer, report);
            }
            BYE => self.lock().left[peer] = true,
            _ => return Err(nonsense("a message of unknown kind")),
        }
        Ok(())
    }

    /// Brings `body` to a meeting of `members`.
    pub(super) fn bring(&self, members: &[usize], body: &[u8]) {
        let frame = frame(MEETING, body);
        for &peer in members {
            // A peer that takes nothing is missed in the meeting.
            drop(self.write(peer, &[&frame], self.options.silence_limit));
        }
    }

    /// Writes a whole frame to a peer; to itself nothing. One that stays unfinished ends the connection.
    pub(super) fn write(&self, peer: usize, parts: &[&[u8]], limit: Duration) -> Result<(), Unwritten> {
        let Some(writer) = &self.writers[peer] else { return Ok(()) };
        let mut stream = lock(writer);
        let mut slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let (mut left, mut countdown, mut started) = (&mut slices[..], Countdown::new(Some(limit)), false);
        let why = loop {
            if left.iter().all(|slice| slice.is_empty()) {
                return Ok(());
            }
            match stream.write_vectored(left) {
                Ok(written) => {
                    started = true;
                    IoSlice::advance_slices(&mut left, written);
                    continue;
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => continue,
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => countdown.spend(WRITE_SLICE),
                    _ => {
                        self.gone(peer, &error);
                        break Unwritten::Failed;
                    }
                },
            }
            let state = self.lock();
            if state.gave_up(peer) || state.reports.stop(self.rank) {
                break Unwritten::Failed;
            }
            if countdown.is_over() {
                break Unwritten::Late;
            }
        };
        if started {
            drop(stream.shutdown(Shutdown::Both));
        }
        Err(why)
    }

    /// Says goodbye. The other direction stays open until the peer leaves, too: its reader ends then.
    pub(super) fn leave(&self) {
        let frame = frame(BYE, &[]);
        for (peer, writer) in self.writers.iter().enumerate() {
            drop(self.write(peer, &[&frame], WRITE_SLICE));
            if let Some(writer) = writer {
                drop(lock(writer).shutdown(Shutdown::Write));
            }
        }
    }

    /// Gives a sign of life to everybody to whom nothing else is being written.
    fn ping(&self) {
        for writer in self.writers.iter().flatten() {
            match writer.try_lock() {
                // A full or closed connection is somebody else's news.
                Ok(mut stream) => drop(stream.write(&[PING])),
                Err(TryLockError::WouldBlock | TryLockError::Poisoned(_)) => {}
            }
        }
    }
}

/// Gives signs of life and looks for those of others, for as long as the rank is there. Silence is counted in time
/// that this process had: one stop costs one look.
pub(super) fn keep_watch(shared: &Weak<Shared>) {
    let Some(limit) = shared.upgrade().map(|shared| shared.options.silence_limit) else { return };
    let look = (limit / 4).min(Duration::from_secs(1));
    let mut silent: Vec<Duration> = Vec::new();
    while let Some(shared) = shared.upgrade() {
        shared.ping();
        silent.resize(shared.hosts.len(), Duration::ZERO);
        for (peer, heard) in shared.heard.iter().enumerate() {
            if heard.swap(false, Ordering::Relaxed) || peer == shared.rank || shared.lock().left[peer] {
                silent[peer] = Duration::ZERO;
            } else if silent[peer] >= limit {
                let cause = format!(
                    "nothing was heard of it for {limit:?}: its process is stopped, or its host is gone"
                );
                shared.report(peer, Report { cause, blames: None, spoken: false });
            }
        }
        drop(shared);
        let start = Instant::now();
        thread::sleep(look);
        let slept = start.elapsed().min(look);
        silent.iter_mut().for_each(|silent| *silent += slept);
    }
}
