//! Where a rank listens: at the address that the others are told, and on no other interface, since whoever reaches the
//! port is not asked who it is.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
};

use super::wire::nonsense;

/// Rank 0's socket at `HOST:PORT`; port 0 takes a free one. `HOST` may have several addresses, of which this host has
/// some. A host's own name that it knows as a loopback address (Debian's `127.0.1.1`) has another one elsewhere, which
/// is not known here: then it is every interface.
pub(super) fn at(address: &str) -> io::Result<TcpListener> {
    let host = host_of(address);
    let mut last = nonsense("the name has no address");
    for mut found in address.to_socket_addrs()? {
        if found.ip().is_loopback() && !names_loopback(host) {
            found.set_ip(every_interface(found.ip()));
        }
        match TcpListener::bind(found) {
            Ok(listener) => return Ok(listener),
            // A second run would be found at the next address, but looked for at this one.
            Err(error) if matches!(error.kind(), io::ErrorKind::AddrInUse) => return Err(error),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A socket with a free port for a rank other than 0, at the address that rank 0, at `HOST:PORT`, sees it come from.
/// Where that is the loopback one though `HOST` does not say so, ranks of other hosts reach this one in another way.
pub(super) fn beside(to_rank_0: &TcpStream, address: &str) -> io::Result<TcpListener> {
    let mut here = to_rank_0.local_addr()?;
    here.set_port(0);
    if here.ip().to_canonical().is_loopback() && !names_loopback(host_of(address)) {
        here = SocketAddr::new(every_interface(here.ip()), 0);
    }
    TcpListener::bind(here)
}

fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']'])
}

/// Whether all ranks are told to use the loopback interface.
fn names_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

fn every_interface(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    /// Where rank 0 of this address listens, and a rank that comes to it.
    fn listening(address: &str) -> io::Result<[IpAddr; 2]> {
        let listener = at(address)?;
        let bound = listener.local_addr()?;
        let connection = TcpStream::connect((host_of(address), bound.port()))?;
        Ok([bound.ip(), beside(&connection, address)?.local_addr()?.ip()])
    }

    #[test]
    fn loopback_addresses_are_listened_on_alone() {
        let v4: IpAddr = "127.0.0.1".parse().unwrap();
        assert_eq!(listening("127.0.0.1:0").unwrap(), [v4; 2]);
        assert_eq!(listening("127.0.0.7:0").unwrap()[0], "127.0.0.7".parse::<IpAddr>().unwrap());
        assert!(listening("localhost:0").unwrap().iter().all(IpAddr::is_loopback));
        // Where the system has IPv6.
        if TcpListener::bind("[::1]:0").is_ok() {
            let v6: IpAddr = "::1".parse().unwrap();
            assert_eq!(listening("[::1]:0").unwrap(), [v6; 2]);
            assert_eq!(listening("::1:0").unwrap(), [v6; 2]);
        }
    }

    #[test]
    fn every_interface_only_where_asked_or_needed() {
        assert!(listening("0.0.0.0:0").unwrap()[0].is_unspecified());
        // This host's name, as it knows it itself.
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let address = format!("{}:0", name.trim());
        let Some(known) = address.to_socket_addrs().ok().and_then(|mut all| all.next()) else { return };
        let expected = if known.ip().is_loopback() { every_interface(known.ip()) } else { known.ip() };
        assert_eq!(listening(&address).unwrap(), [expected; 2]);
    }

    #[test]
    fn what_is_no_address_of_this_host_is_refused_at_once() {
        // Of a network for documentation.
        assert_eq!(at("192.0.2.1:0").unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
        assert!(at("no-such-host.invalid:0").is_err());
        let taken = at("127.0.0.1:0").unwrap().local_addr().unwrap();
        let _held = TcpListener::bind(taken).unwrap();
        assert_eq!(at(&taken.to_string()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
