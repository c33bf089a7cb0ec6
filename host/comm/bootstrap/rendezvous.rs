//! How processes find each other: all come to rank 0, which tells each where the others are.
//!
//! A hello begins with what every release understands (magic, protocol, rank, world, release), so that another
//! release is named and not misread. Rank 0 answers when all are there, or calls the start off with the reason.

use std::{
    io::{self, Write},
    net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use super::{
    BootstrapError,
    hosts::this_host,
    listen,
    wire::{Packer, Unpacker, nonsense},
};
use crate::kernels::release;

const MAGIC: u64 = u64::from_le_bytes(*b"fewsync\0");
/// Changes with every change of what processes say to each other.
const PROTOCOL: u32 = 1;

const WELCOME: u8 = 1;
const CALLED_OFF: u8 = 0;

/// How long a connection may take to say who it is.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(50);
/// How often the door is looked at.
const KNOCK: Duration = Duration::from_millis(5);

/// A rank's connections, one to each other rank.
#[derive(Debug)]
pub(super) struct Connections {
    pub(super) rank: usize,
    pub(super) hosts: Vec<String>,
    /// By rank; none to itself.
    pub(super) streams: Vec<Option<TcpStream>>,
}

/// What a process says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hello {
    protocol: u32,
    rank: usize,
    world: usize,
    release: String,
    /// Of this protocol only.
    host: String,
    port: u16,
}

impl Hello {
    fn pack(&self) -> Vec<u8> {
        let Self { protocol, rank, world, release, host, port } = self;
        let start = Packer::default().u64(MAGIC).u32(*protocol).u64(*rank as u64).u64(*world as u64);
        start.bytes(release.as_bytes()).bytes(host.as_bytes()).u32((*port).into()).finish()
    }

    fn read(stream: &TcpStream) -> io::Result<Self> {
        let mut from = Unpacker(stream);
        if from.u64()? != MAGIC {
            return Err(nonsense("not a fewsync process"));
        }
        let (protocol, rank, world, release) = (from.u32()?, from.index()?, from.index()?, from.text()?);
        if protocol != PROTOCOL {
            return Ok(Self { protocol, rank, world, release, host: String::new(), port: 0 });
        }
        let (host, port) = (from.text()?, from.u32()? as u16);
        Ok(Self { protocol, rank, world, release, host, port })
    }

    fn version(&self) -> String {
        format!("{} (protocol {})", self.release, self.protocol)
    }
}

/// Rank 0's part: welcomes all others.
pub(super) fn host(
    listener: TcpListener,
    world: usize,
    limit: Duration,
) -> Result<Connections, BootstrapError> {
    let mut guests: Vec<Option<(TcpStream, Hello)>> = (0..world).map(|_| None).collect();
    let system = |source| BootstrapError::System { rank: 0, what: "a socket", source };
    let door = Door::new(listener, Instant::now() + limit).map_err(system)?;
    let met = gather(&door, world, limit, &mut guests);
    let present = || guests.iter().enumerate().filter_map(|(rank, guest)| Some((rank, guest.as_ref()?)));
    if let Err(error) = met {
        let answer = Packer::default().u8(CALLED_OFF).bytes(error.to_string().as_bytes()).finish();
        // Who cannot be told any more hears it from its connection's end.
        present().for_each(|(_, (stream, _))| drop((&mut &*stream).write_all(&answer)));
        return Err(error);
    }
    let mut hosts = vec![this_host()];
    hosts.extend(present().map(|(_, (_, hello))| hello.host.clone()));
    for (rank, (stream, _)) in present() {
        let lost = |source| BootstrapError::Lost { rank: 0, peer: format!("rank {rank}"), source };
        let mut answer = Packer::default().u8(WELCOME).u64(world as u64);
        for peer in 0..world {
            let address = guests[peer].as_ref().map_or(Ok(String::new()), |guest| address_for(stream, guest));
            answer = answer.bytes(hosts[peer].as_bytes()).bytes(address.map_err(lost)?.as_bytes());
        }
        (&mut &*stream).write_all(&answer.finish()).map_err(lost)?;
    }
    let streams = guests.into_iter().map(|guest| guest.map(|(stream, _)| stream)).collect();
    Ok(Connections { rank: 0, hosts, streams })
}

/// Where the rank behind `asking` finds `guest`. One that came over the loopback interface is on this host, so it is
/// where `asking` found this host.
fn address_for(asking: &TcpStream, (stream, hello): &(TcpStream, Hello)) -> io::Result<String> {
    let seen = stream.peer_addr()?.ip().to_canonical();
    let ip = if seen.is_loopback() { asking.local_addr()?.ip().to_canonical() } else { seen };
    Ok(SocketAddr::new(ip, hello.port).to_string())
}

/// Takes hellos until every rank has said one.
fn gather(
    door: &Door,
    world: usize,
    limit: Duration,
    guests: &mut [Option<(TcpStream, Hello)>],
) -> Result<(), BootstrapError> {
    let missing =
        |guests: &[Option<_>]| (1..world).filter(|&rank| guests[rank].is_none()).collect::<Vec<_>>();
    while !missing(guests).is_empty() {
        let (stream, hello) = door.next().ok_or_else(|| BootstrapError::Missing {
            rank: 0,
            missing: missing(guests),
            waited: limit,
        })?;
        let verdict = judge(&hello, world, guests);
        let rank = hello.rank;
        if verdict.is_ok() {
            guests[rank] = Some((stream, hello));
        } else if let Err(error) = verdict {
            let answer = Packer::default().u8(CALLED_OFF).bytes(error.to_string().as_bytes()).finish();
            drop((&mut &stream).write_all(&answer));
            return Err(error);
        }
    }
    Ok(())
}

fn judge(hello: &Hello, world: usize, guests: &[Option<(TcpStream, Hello)>]) -> Result<(), BootstrapError> {
    let &Hello { rank, world: found, .. } = hello;
    let mine = Hello { protocol: PROTOCOL, release: release(), ..hello.clone() };
    if (hello.protocol, &hello.release) != (PROTOCOL, &mine.release) {
        return Err(BootstrapError::Version { rank, found: hello.version(), version: mine.version() });
    }
    if found != world {
        return Err(BootstrapError::World { rank, found, world });
    }
    match guests.get(rank) {
        None => Err(BootstrapError::NoSuchRank { rank, world }),
        Some(None) if rank > 0 => Ok(()),
        Some(_) => Err(BootstrapError::Twice { rank, world }),
    }
}

/// The part of every other rank: goes to rank 0, then to the ranks below its own; those above come to it.
pub(super) fn join(
    address: &str,
    rank: usize,
    world: usize,
    limit: Duration,
) -> Result<Connections, BootstrapError> {
    let deadline = Instant::now() + limit;
    let system = |what| move |source| BootstrapError::System { rank, what, source };
    let lost_0 = |source| BootstrapError::Lost { rank, peer: "rank 0".to_owned(), source };

    let first = connect(address, deadline).map_err(|reason| BootstrapError::Unreachable {
        rank,
        address: address.to_owned(),
        waited: limit,
        reason,
    })?;
    let listener = listen::beside(&first, address).map_err(system("a port to listen on"))?;
    let port = listener.local_addr().map_err(system("a port to listen on"))?.port();
    let (protocol, release, host) = (PROTOCOL, release(), this_host());
    let hello = Hello { protocol, rank, world, release, host, port };
    (&mut &first).write_all(&hello.pack()).map_err(lost_0)?;
    // Rank 0 gives up at its own limit and says so; a little longer, in case it was started later.
    first.set_read_timeout(Some(limit + HELLO_LIMIT)).map_err(lost_0)?;
    let table = read_answer(&first).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            let reason = "something listens there, but it does not answer as rank 0 does".to_owned();
            BootstrapError::Unreachable {
                rank,
                address: address.to_owned(),
                waited: limit + HELLO_LIMIT,
                reason,
            }
        }
        _ => lost_0(source),
    })?;
    let table = table.map_err(|reason| BootstrapError::CalledOff { rank, reason })?;
    if table.len() != world {
        return Err(lost_0(nonsense("its table is not of this world")));
    }

    let mut streams: Vec<Option<TcpStream>> = (0..world).map(|_| None).collect();
    for (peer, (_, at)) in table.iter().enumerate().take(rank).skip(1) {
        let lost = |source| BootstrapError::Lost { rank, peer: format!("rank {peer} at {at}"), source };
        let stream = connect(at, deadline).map_err(|reason| lost(io::Error::other(reason)))?;
        (&mut &stream).write_all(&hello.pack()).map_err(lost)?;
        streams[peer] = Some(stream);
    }
    streams[0] = Some(first);
    let door = Door::new(listener, deadline).map_err(system("a socket"))?;
    loop {
        let missing: Vec<_> = (0..world).filter(|&peer| peer != rank && streams[peer].is_none()).collect();
        if missing.is_empty() {
            break;
        }
        let (stream, hello) = door.next().ok_or(BootstrapError::Missing { rank, missing, waited: limit })?;
        if hello.rank > rank && hello.rank < world && streams[hello.rank].is_none() {
            streams[hello.rank] = Some(stream);
        }
    }
    Ok(Connections { rank, hosts: table.into_iter().map(|(host, _)| host).collect(), streams })
}

/// Rank 0's answer: host and address of each rank, or why there is no start.
fn read_answer(stream: &TcpStream) -> io::Result<Result<Vec<(String, String)>, String>> {
    let mut from = Unpacker(stream);
    if from.u8()? != WELCOME {
        return from.text().map(Err);
    }
    let world = from.u64()?;
    (0..world).map(|_| Ok((from.text()?, from.text()?))).collect::<io::Result<_>>().map(Ok)
}

/// Tries until it succeeds or the deadline passes; then the last reason.
fn connect(address: &str, deadline: Instant) -> Result<TcpStream, String> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let attempt = address.to_socket_addrs().and_then(|all| {
            let mut last = Err(nonsense("the name has no address"));
            // A name may have several, of which rank 0 listens on one: `localhost` is ::1 and 127.0.0.1.
            for at in all {
                last = TcpStream::connect_timeout(&at, left.max(RETRY));
                if last.is_ok() {
                    break;
                }
            }
            last
        });
        match attempt {
            Ok(stream) => return Ok(stream),
            Err(error) if left.is_zero() => return Err(error.to_string()),
            Err(_) => thread::sleep(RETRY.min(left)),
        }
    }
}

/// Where connections come in. Each says who it is in a thread of its own, so that a stranger who says nothing holds
/// up nobody.
struct Door {
    listener: TcpListener,
    inside: Sender<(TcpStream, Hello)>,
    hellos: Receiver<(TcpStream, Hello)>,
    deadline: Instant,
}

impl Door {
    fn new(listener: TcpListener, deadline: Instant) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let (inside, hellos) = channel();
        Ok(Self { listener, inside, hellos, deadline })
    }

    /// The next process that says hello; none once the deadline has passed.
    fn next(&self) -> Option<(TcpStream, Hello)> {
        loop {
            while let Ok((stream, _)) = self.listener.accept() {
                let inside = self.inside.clone();
                // Without a thread for it the process is one of those that did not come.
                drop(thread::Builder::new().spawn(move || {
                    let prepared = stream
                        .set_nonblocking(false)
                        .and_then(|()| stream.set_read_timeout(Some(HELLO_LIMIT)));
                    if let Ok(hello) = prepared.and_then(|()| Hello::read(&stream)) {
                        drop(inside.send((stream, hello)));
                    }
                }));
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            match self.hellos.recv_timeout(left.min(KNOCK)) {
                Ok(come) => return Some(come),
                Err(RecvTimeoutError::Timeout) if !left.is_zero() => {}
                Err(_) => return None,
            }
        }
    }
}
