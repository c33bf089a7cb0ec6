//! Connections between all ranks, and what is said over them: meetings, failures, and the messages of collectives.
//!
//! One thread per peer reads whatever comes into this process's memory, always. So a rank that writes never waits
//! for a peer to be ready to read, only for its process to run, and two ranks may send each other any amount at once.

mod inbox;
mod meeting;
mod shared;

use std::{io, net::TcpStream, sync::Arc, thread, time::Duration};

pub(in crate::comm) use inbox::Inbox;
pub(in crate::comm) use shared::Unwritten;
use shared::{FAILURE, Shared, frame};

use super::{
    Bootstrap, BootstrapError, Report, Reports, listen,
    rendezvous::{self, Connections},
    wire::Packer,
};
use crate::comm::{CommError, cpu::Countdown};

/// How long a write may block before its rank looks whether it should go on.
const WRITE_SLICE: Duration = Duration::from_millis(100);

/// How a world behaves; equal on all ranks.
#[derive(Debug, Clone)]
pub struct MeshOptions {
    /// Longest wait for all processes to start.
    pub start_limit: Duration,
    /// Longest wait in a meeting; none is for as long as all ranks live.
    pub meeting_limit: Option<Duration>,
    /// Longest silence of a process before it counts as failed. Each gives a sign of life every second, or four times
    /// within the limit, whatever it is doing.
    pub silence_limit: Duration,
}

impl Default for MeshOptions {
    /// Two minutes for each.
    fn default() -> Self {
        let limit = Duration::from_secs(120);
        Self { start_limit: limit, meeting_limit: Some(limit), silence_limit: limit }
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
        let failed = |source| BootstrapError::Listen { address: address.to_owned(), source };
        listen::at(address).map(Self).map_err(failed)
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
        let prepare = |stream: &TcpStream| {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(None)?;
            stream.set_write_timeout(Some(WRITE_SLICE))?;
            stream.try_clone()
        };
        let system = |what| move |source| BootstrapError::System { rank, what, source };
        let readers = streams.iter().map(|stream| stream.as_ref().map(prepare).transpose());
        let readers = readers.collect::<io::Result<Vec<_>>>().map_err(system("a socket"))?;
        let mesh = Self { shared: Arc::new(Shared::new(rank, hosts, options, streams)) };
        for (peer, reader) in readers.into_iter().enumerate() {
            let Some(reader) = reader else { continue };
            let shared = Arc::clone(&mesh.shared);
            let thread = thread::Builder::new().name(format!("from rank {peer}"));
            thread.spawn(move || shared.listen_to(peer, reader)).map_err(system("a thread"))?;
        }
        let shared = Arc::downgrade(&mesh.shared);
        let thread = thread::Builder::new().name("signs of life".to_owned());
        thread.spawn(move || shared::keep_watch(&shared)).map_err(system("a thread"))?;
        Ok(mesh)
    }

    /// The failure of another rank, as this one's error.
    pub(in crate::comm) fn peer_failure(&self) -> Option<CommError> {
        self.shared.failure(&self.shared.lock())
    }

    /// Waits until every rank has failed or left, for at most `limit`: then all that will be told has been told.
    pub fn settle(&self, limit: Duration) {
        let mut countdown = Countdown::new(Some(limit));
        let mut state = self.shared.lock();
        while !countdown.is_over()
            && (0..self.world()).any(|rank| state.reports.of(rank).is_none() && !state.left[rank])
        {
            state = countdown.park(&self.shared.changed, state);
        }
    }

    /// Where messages of this rank's buffers arrive from now on.
    pub(in crate::comm) fn inbox(&self) -> Inbox {
        Inbox::open(&self.shared)
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
        self.shared.report(self.rank(), Report { cause: cause.to_owned(), blames, spoken: true });
        let body = Packer::default().u64(blames.map_or(u64::MAX, |peer| peer as u64)).bytes(cause.as_bytes());
        let frame = frame(FAILURE, &body.finish());
        for peer in 0..self.world() {
            // Who cannot be told notices by itself.
            drop(self.shared.write(peer, &[&frame], WRITE_SLICE));
        }
    }

    fn reports(&self) -> Reports {
        self.shared.lock().reports.clone()
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.shared.leave();
    }
}
