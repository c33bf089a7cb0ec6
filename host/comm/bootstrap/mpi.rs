//! MPI as a launcher: it says who is which rank, and tells all where rank 0 listens.
//!
//! That is all it is asked for. Its collectives have no time limit, so a rank that dies would hang the others; what
//! follows goes over the [`Mesh`](super::Mesh), which names it. MPI is finalised before this returns.

#[cfg(feature = "mpi")]
use mpi::{Threading, traits::*};

use super::{BootstrapError, Listener};

/// Room for a host's identity, or an address.
#[cfg(feature = "mpi")]
const TEXT_BYTES: usize = 256;

/// What MPI knows of this process.
#[derive(Debug)]
pub struct Place {
    /// Its rank.
    pub rank: usize,
    /// Number of ranks.
    pub world: usize,
    /// `HOST:PORT` of rank 0.
    pub address: String,
    /// Rank 0's socket, on rank 0.
    pub listener: Option<Listener>,
}

/// Whether the program was built with the feature `mpi`.
pub const AVAILABLE: bool = cfg!(feature = "mpi");

/// Without the feature `mpi` there is nobody to ask.
///
/// # Errors
/// [`BootstrapError::Mpi`].
#[cfg(not(feature = "mpi"))]
pub fn place() -> Result<Place, BootstrapError> {
    Err(BootstrapError::Mpi { reason: "the program was built without the feature mpi".to_owned() })
}

/// Collective over all processes that MPI started, once a process: initialises MPI, learns the place, finalises.
///
/// # Errors
/// [`BootstrapError::Mpi`]; on rank 0 also [`BootstrapError::Listen`].
#[cfg(feature = "mpi")]
pub fn place() -> Result<Place, BootstrapError> {
    use super::hosts::this_host;
    let failed = |reason: &str| BootstrapError::Mpi { reason: reason.to_owned() };
    let universe = mpi::initialize_with_threading(Threading::Serialized);
    let (universe, _) = universe.ok_or_else(|| failed("it was initialised before in this process"))?;
    let all = universe.world();
    let (rank, world) = (all.rank() as usize, all.size() as usize);

    let mut hosts = vec![0; TEXT_BYTES * world];
    all.all_gather_into(&padded(&this_host())[..], &mut hosts[..]);
    let one_host = hosts.chunks_exact(TEXT_BYTES).all(|host| host == &hosts[..TEXT_BYTES]);

    let listener = (rank == 0).then(|| Listener::bind(if one_host { "127.0.0.1:0" } else { "0.0.0.0:0" }));
    let own_address = || {
        let port = listener.as_ref()?.as_ref().ok()?.port().ok()?;
        let host = this_host();
        let name = host.split(" (").next().unwrap_or_default();
        Some(format!("{}:{port}", if one_host { "127.0.0.1" } else { name }))
    };
    // Empty where rank 0 cannot listen: the others have to hear of it.
    let mut address = padded(&own_address().unwrap_or_default());
    all.process_at_rank(0).broadcast_into(&mut address[..]);
    drop(universe);

    let listener = listener.transpose()?;
    let end = address.iter().position(|&byte| byte == 0).unwrap_or(TEXT_BYTES);
    let address = String::from_utf8_lossy(&address[..end]).into_owned();
    if address.is_empty() {
        return Err(failed("rank 0 has no port to listen on"));
    }
    Ok(Place { rank, world, address, listener })
}

#[cfg(feature = "mpi")]
fn padded(text: &str) -> [u8; TEXT_BYTES] {
    let mut bytes = [0; TEXT_BYTES];
    let len = text.len().min(TEXT_BYTES);
    bytes[..len].copy_from_slice(&text.as_bytes()[..len]);
    bytes
}
