//! Connections between all ranks, and what is said over them: meetings, failures, and the messages of collectives.
//!
//! One thread per peer reads whatever comes into this process's memory, always. So a rank that writes never waits
//! for a peer to be ready to read, only for its process to run, and two ranks may send each other any amount at once.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, BufReader, Write},
    net::{Shutdown, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use super::{
    Bootstrap, BootstrapError, Report, Reports,
    rendezvous::{self, Connections},
    wire::{Packer, Unpacker, nonsense},
};
use crate::comm::{CommError, memory::countdown::Countdown};

const MEETING: u8 = 1;
const FAILURE: u8 = 2;
const BYE: u8 = 3;

/// How long a write may block before its rank looks whether it should go on.
const WRITE_SLICE: Duration = Duration::from_millis(100);
const READ_BUFFER_BYTES: usize = 1 << 16;

/// How a world behaves; equal on all ranks.
#[derive(Debug, Clone)]
pub struct MeshOptions {
    /// Longest wait for all processes to start.
    pub start_limit: Duration,
    /// Longest wait for a peer to take what is written to it.
    pub write_limit: Duration,
    /// Longest wait in a meeting; none is for as long as all ranks live.
    pub meeting_limit: Option<Duration>,
}

impl Default for MeshOptions {
    /// Two minutes for each.
    fn default() -> Self {
        let limit = Duration::from_secs(120);
        Self { start_limit: limit, write_limit: limit, meeting_limit: Some(limit) }
    }
}

/// Rank 0's socket, open before the other ranks know where.
#[derive(Debug)]
pub struct Listener(std::net::TcpListener);

impl Listener {
    /// Listens at `HOST:PORT`; port 0 takes a free one.
    ///
    /// # Errors
    /// [`BootstrapError::Listen`].
    pub fn bind(address: &str) -> Result<Self, BootstrapError> {
        rendezvous::listen(address).map(Self)
    }

    /// The port that it listens on.
    ///
    /// # Errors
    /// [`BootstrapError::System`].
    pub fn port(&self) -> Result<u16, BootstrapError> {
        let system = |source| BootstrapError::System { rank: 0, what: "its port", source };
        self.0.local_addr().map(|address| address.port()).map_err(system)
    }
}

/// One rank of a world of processes, connected to each other one over TCP.
///
/// Dropping it leaves the world: who then waits for this rank gets [`CommError::PeerFailed`].
#[derive(Debug)]
pub struct Mesh {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    rank: usize,
    hosts: Vec<String>,
    options: MeshOptions,
    /// By rank; none to itself.
    writers: Vec<Option<Mutex<TcpStream>>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    reports: Reports,
    /// Ranks that said goodbye.
    left: Vec<bool>,
    /// Number of the next meeting of each group.
    turns: HashMap<Vec<usize>, u64>,
    /// What ranks have brought to meetings: by group and turn, then by rank the call and the item.
    meetings: HashMap<(Vec<usize>, u64), BTreeMap<usize, (String, Vec<u8>)>>,
}

impl Mesh {
    /// Rank 0 of `world` ranks; waits for all others.
    ///
    /// # Errors
    /// [`BootstrapError`]; the others are told.
    pub fn host(listener: Listener, world: usize, options: MeshOptions) -> Result<Self, BootstrapError> {
        Self::start(rendezvous::host(listener.0, world, options.start_limit)?, options)
    }

    /// A rank other than 0, which listens at `address` (`HOST:PORT`).
    ///
    /// # Errors
    /// [`BootstrapError`].
    pub fn join(
        address: &str,
        rank: usize,
        world: usize,
        options: MeshOptions,
    ) -> Result<Self, BootstrapError> {
        Self::start(rendezvous::join(address, rank, world, options.start_limit)?, options)
    }

    /// Whichever of the two `rank` is.
    ///
    /// # Errors
    /// [`BootstrapError`].
    pub fn connect(
        address: &str,
        rank: usize,
        world: usize,
        options: MeshOptions,
    ) -> Result<Self, BootstrapError> {
        match rank {
            0 => Self::host(Listener::bind(address)?, world, options),
            _ => Self::join(address, rank, world, options),
        }
    }

    fn start(connections: Connections, options: MeshOptions) -> Result<Self, BootstrapError> {
        let Connections { rank, hosts, streams } = connections;
        let world = hosts.len();
        let prepare = |stream: &TcpStream| {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(None)?;
            stream.set_write_timeout(Some(WRITE_SLICE))?;
            stream.try_clone()
        };
        let system = |what| move |source| BootstrapError::System { rank, what, source };
        let readers = streams.iter().map(|stream| stream.as_ref().map(prepare).transpose());
        let readers = readers.collect::<io::Result<Vec<_>>>().map_err(system("a socket"))?;
        let state = State {
            reports: Reports::new(world),
            left: vec![false; world],
            turns: HashMap::new(),
            meetings: HashMap::new(),
        };
        let writers = streams.into_iter().map(|stream| stream.map(Mutex::new)).collect();
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let mesh = Self { shared: Arc::new(Shared { rank, hosts, options, writers, state, changed }) };
        for (peer, reader) in readers.into_iter().enumerate() {
            let Some(reader) = reader else { continue };
            let shared = Arc::clone(&mesh.shared);
            let thread = thread::Builder::new().name(format!("from rank {peer}"));
            thread.spawn(move || shared.listen_to(peer, reader)).map_err(system("a thread"))?;
        }
        Ok(mesh)
    }
}

impl Bootstrap for Mesh {
    fn rank(&self) -> usize {
        self.shared.rank
    }

    fn hosts(&self) -> &[String] {
        &self.shared.hosts
    }

    fn meet(
        &self,
        members: &[usize],
        call: &str,
        mine: &[u8],
        limit: Option<Duration>,
    ) -> Result<Vec<Vec<u8>>, CommError> {
        self.shared.meet(members, call, mine, limit)
    }

    fn meeting_limit(&self) -> Option<Duration> {
        self.shared.options.meeting_limit
    }

    fn fail(&self, cause: &str, blames: Option<usize>) {
        let Shared { rank, .. } = *self.shared;
        let report = Report { cause: cause.to_owned(), blames, spoken: true };
        self.shared.report(rank, report);
        let body = Packer::default().u64(blames.map_or(u64::MAX, |peer| peer as u64)).bytes(cause.as_bytes());
        let frame = frame(FAILURE, &body.finish());
        for peer in 0..self.world() {
            // Who cannot be told notices by itself.
            drop(self.shared.write(peer, &[&frame], Some(WRITE_SLICE)));
        }
    }

    fn reports(&self) -> Reports {
        self.shared.lock().reports.clone()
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        let frame = frame(BYE, &[]);
        for peer in 0..self.shared.hosts.len() {
            drop(self.shared.write(peer, &[&frame], Some(WRITE_SLICE)));
            if let Some(writer) = &self.shared.writers[peer] {
                // The other direction stays open until the peer leaves: its thread here ends then.
                drop(lock(writer).shutdown(Shutdown::Write));
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    Packer::default().u8(kind).bytes(body).finish()
}

/// Why something was not written or read.
enum Stop {
    Failed,
    Late,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn report(&self, rank: usize, report: Report) {
        self.lock().reports.add(rank, report);
        self.changed.notify_all();
    }

    /// A reader's life: takes what `peer` says until it leaves or its connection ends.
    fn listen_to(&self, peer: usize, stream: TcpStream) {
        let mut from = Unpacker(BufReader::with_capacity(READ_BUFFER_BYTES, stream));
        let end = loop {
            if let Err(error) = self.take_frame(peer, &mut from) {
                break error;
            }
        };
        if !self.lock().left[peer] {
            let cause = match end.kind() {
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                    "its process ended".to_owned()
                }
                _ => format!("its connection failed ({end})"),
            };
            self.report(peer, Report { cause, blames: None, spoken: false });
        }
        self.changed.notify_all();
    }

    fn take_frame(&self, peer: usize, from: &mut Unpacker<impl io::Read>) -> io::Result<()> {
        let kind = from.u8()?;
        let body = from.bytes()?;
        let mut body = Unpacker(&body[..]);
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
        self.changed.notify_all();
        Ok(())
    }

    /// Writes to a peer; to itself nothing. Whoever stops in the middle has failed: the connection is of no use then.
    fn write(&self, peer: usize, parts: &[&[u8]], limit: Option<Duration>) -> Result<(), Stop> {
        let Some(writer) = &self.writers[peer] else { return Ok(()) };
        let mut stream = lock(writer);
        let mut countdown = Countdown::new(limit);
        for part in parts {
            let mut left = *part;
            while !left.is_empty() {
                match stream.write(left) {
                    Ok(0) => return Err(Stop::Failed),
                    Ok(written) => left = &left[written..],
                    Err(error) => match error.kind() {
                        io::ErrorKind::Interrupted => {}
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                            countdown.spend(WRITE_SLICE);
                            if countdown.is_over() {
                                return Err(Stop::Late);
                            }
                        }
                        _ => return Err(Stop::Failed),
                    },
                }
            }
        }
        Ok(())
    }

    /// The error of a rank that was interrupted, or found `peer` gone.
    fn interruption(&self, state: &State, peer: usize) -> CommError {
        let rank = self.rank;
        match state.reports.first() {
            Some((peer, report)) => CommError::PeerFailed { rank, peer, cause: report.cause.clone() },
            None => {
                let cause = "it left the group while others waited for it".to_owned();
                CommError::PeerFailed { rank, peer, cause }
            }
        }
    }

    fn meet(
        &self,
        members: &[usize],
        call: &str,
        mine: &[u8],
        limit: Option<Duration>,
    ) -> Result<Vec<Vec<u8>>, CommError> {
        let rank = self.rank;
        let key = {
            let mut state = self.lock();
            let turn = state.turns.entry(members.to_vec()).or_default();
            let key = (members.to_vec(), *turn);
            *turn += 1;
            state.meetings.entry(key.clone()).or_default().insert(rank, (call.to_owned(), mine.to_vec()));
            key
        };
        let body = Packer::default().numbers(members).u64(key.1).bytes(call.as_bytes()).bytes(mine).finish();
        let frame = frame(MEETING, &body);
        for &peer in members {
            // A peer that takes nothing shows below as one that brings nothing.
            drop(self.write(peer, &[&frame], Some(self.options.write_limit)));
        }
        let mut countdown = Countdown::new(limit);
        let mut state = self.lock();
        let brought = loop {
            let here = &state.meetings[&key];
            let missing: Vec<_> = members.iter().copied().filter(|peer| !here.contains_key(peer)).collect();
            if missing.is_empty() {
                break state.meetings.remove(&key).unwrap_or_default();
            }
            let gone = missing.iter().copied().find(|&peer| state.left[peer]);
            if state.reports.first().is_some() || gone.is_some() {
                return Err(self.interruption(&state, gone.unwrap_or(rank)));
            }
            if countdown.is_over() {
                let (call, waited) = (call.to_owned(), limit.unwrap_or_default());
                return Err(CommError::Absent { rank, call, missing, waited });
            }
            state = countdown.park(&self.changed, state);
        };
        let mut by_member = members.iter().filter_map(|peer| Some((*peer, brought.get(peer)?)));
        let Some((first, (first_call, _))) = by_member.clone().next() else { return Ok(Vec::new()) };
        if let Some((other, (other_call, _))) = by_member.find(|(_, (call, _))| call != first_call) {
            let (call, other_call) = (first_call.clone(), other_call.clone());
            return Err(CommError::Disagreement { rank: first, call, other, other_call });
        }
        Ok(members.iter().map(|peer| brought[peer].1.clone()).collect())
    }
}
