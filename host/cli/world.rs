//! Where the ranks are: threads of this process, or processes of which this is one.
//!
//! Processes run the same command line. Rank 0 speaks; the others are silent, except for a failure that is theirs to
//! tell.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{anyhow, bail, ensure};

use super::layout::SyncArgs;
use super::output;
use crate::bench::allreduce::AllReduceBenchError;
use crate::comm::CommError;
use crate::comm::bootstrap::launch::{Address, Launch, LaunchError, Launcher, detect};
use crate::comm::bootstrap::{Bootstrap, BootstrapError, Mesh, MeshOptions, mpi};
use crate::comm::process::Lead;
use crate::runner::RunError;

/// Longest wait for the failures of others before one of them is told: ranks do not begin to wait at the same moment.
const SETTLE: Duration = Duration::from_secs(1);
/// A process that is silent for less is not given up, however short the waits for its messages are.
const MIN_SILENCE: Duration = Duration::from_secs(10);
/// Longest wait for a rank where nothing else is said.
const DEFAULT_LIMIT: Duration = Duration::from_secs(120);

/// Where the ranks of a run are.
#[derive(Clone)]
pub(super) enum World {
    /// Threads of this process.
    Threads,
    /// Processes; this is one of them.
    Processes(Arc<Mesh>),
}

/// Longest wait for the others of a process that only has to tell them that its command line is refused.
const MISUSE_LIMIT: Duration = Duration::from_secs(3);

/// What the environment says of other processes.
pub(super) fn launch() -> Result<Option<Launch>, LaunchError> {
    detect(|name| std::env::var(name).ok())
}

impl World {
    /// Joins the other processes that were launched with this one.
    pub(super) fn join(launch: Launch, sync: &SyncArgs) -> anyhow::Result<Self> {
        let options = MeshOptions {
            start_limit: sync.start_limit.unwrap_or(DEFAULT_LIMIT),
            meeting_limit: Some(sync.sync_limit.unwrap_or(DEFAULT_LIMIT)),
            silence_limit: sync.sync_limit.unwrap_or(DEFAULT_LIMIT).max(MIN_SILENCE),
        };
        let Launch { launcher, rank, world, address, .. } = launch;
        // What the user says counts; what MPI says is better than what can be concluded.
        let ask_mpi = mpi::AVAILABLE && launcher == Launcher::OpenMpi;
        let mesh = match address {
            Address::Given(address) => Mesh::connect(&address, rank, world, options)?,
            Address::Concluded(address) if !ask_mpi => Mesh::connect(&address, rank, world, options)?,
            _ if ask_mpi => {
                let mpi::Place { rank, world: found, address, listener } = mpi::place()?;
                ensure!(
                    found == world,
                    "{launcher} started {world} ranks, but MPI knows {found}: is it another MPI?"
                );
                match listener {
                    Some(listener) => Mesh::host(listener, world, options)?,
                    None => Mesh::join(&address, rank, world, options)?,
                }
            }
            _ => bail!(
                "{launcher} started {world} ranks, but nothing says where rank 0 listens: set MASTER_ADDR to its host \
                 and MASTER_PORT to a free port for all ranks, or build with --features mpi and use mpirun"
            ),
        };
        Ok(Self::Processes(Arc::new(mesh)))
    }

    /// Number of processes, where ranks are processes.
    pub(super) fn processes(&self) -> Option<usize> {
        match self {
            Self::Threads => None,
            Self::Processes(mesh) => Some(mesh.world()),
        }
    }

    /// How many of the world's processes share this host, itself among them.
    pub(super) fn processes_here(&self) -> usize {
        match self {
            Self::Threads => 1,
            Self::Processes(mesh) => {
                mesh.hosts().iter().filter(|host| **host == mesh.hosts()[mesh.rank()]).count()
            }
        }
    }

    /// Rank 0's decisions, where others have to follow them.
    pub(super) fn lead(&self, sync: &SyncArgs) -> Result<Option<Lead>, CommError> {
        match self {
            Self::Threads => Ok(None),
            Self::Processes(mesh) => Lead::new(mesh, sync.sync_limit.unwrap_or(DEFAULT_LIMIT)).map(Some),
        }
    }

    /// Ends the run: all processes succeed, or none does. Returns what people are to be told, if it is this process's
    /// to tell.
    pub(super) fn conclude(&self, result: anyhow::Result<()>) -> Result<(), Option<String>> {
        // The reader of our output left (`fewsync … | head`): nothing is wrong, and nobody listens.
        let unheard = result.as_ref().is_err_and(output::is_broken_pipe);
        let Self::Processes(mesh) = self else {
            return if unheard { Ok(()) } else { result.map_err(|error| Some(super::sentence(&error))) };
        };
        let ended = |()| mesh.all_gather("the end", &[]).map(drop).map_err(anyhow::Error::from);
        let Err(error) = result.and_then(ended) else { return Ok(()) };
        let (rank, sentence) = (mesh.rank(), super::sentence(&error));
        mesh.fail(&sentence, blames(&error));
        mesh.settle(SETTLE);
        let reports = mesh.reports();
        Err((reports.speaker(rank) == Some(rank) && !unheard).then(|| match reports.root(rank) {
            Some((root, report)) if !report.spoken => format!("rank {root} failed: {}", report.cause),
            _ => sentence,
        }))
    }
}

/// The rank whose failure an error follows from.
fn blames(error: &anyhow::Error) -> Option<usize> {
    // Errors that are nothing but a communicator's do not name it as their cause.
    let comm = |cause: &(dyn std::error::Error + 'static)| {
        let of_run = || match cause.downcast_ref() {
            Some(RunError::Comm(comm)) => comm.blames(),
            _ => None,
        };
        let of_bench = || match cause.downcast_ref() {
            Some(AllReduceBenchError::Comm(comm)) => comm.blames(),
            _ => None,
        };
        cause.downcast_ref().and_then(CommError::blames).or_else(of_run).or_else(of_bench)
    };
    error.chain().find_map(comm)
}

/// Says why a run cannot begin, unless rank 0 says it.
pub(super) fn refuse(rank: usize, error: &anyhow::Error) -> ExitCode {
    let told = matches!(error.downcast_ref(), Some(BootstrapError::CalledOff { .. }));
    // What is no rank's own trouble is the same on all.
    let common = error.downcast_ref::<BootstrapError>().is_none();
    if !told && (rank == 0 || !common) {
        output::complain(&super::sentence(error));
    }
    ExitCode::FAILURE
}

/// Ends a process above rank 0 whose command line is refused. Where the others come up, theirs is another one: nobody
/// else would say what is wrong, and they would wait.
pub(super) fn misuse(launch: Result<Option<Launch>, LaunchError>, error: &clap::Error) -> ExitCode {
    let sync = SyncArgs { start_limit: Some(MISUSE_LIMIT), ..SyncArgs::default() };
    if let (true, Ok(Some(launch))) = (error.use_stderr(), launch)
        && let rank = launch.rank
        && let Ok(world) = World::join(launch, &sync)
    {
        let text = error.to_string();
        let text = text.trim_start_matches("error: ").split("\n\n").next().unwrap_or_default();
        let told = world.conclude(Err(anyhow!("rank {rank} does not understand its command line: {text}")));
        told.err().flatten().iter().for_each(|sentence| output::complain(sentence));
    }
    ExitCode::from(error.exit_code() as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_blamed_is_found_in_whatever_an_error_is_part_of() {
        let failed = || CommError::PeerFailed { rank: 0, peer: 2, cause: "a full disk".into() };
        assert_eq!(blames(&failed().into()), Some(2));
        assert_eq!(blames(&RunError::Comm(failed()).into()), Some(2));
        assert_eq!(blames(&AllReduceBenchError::Comm(failed()).into()), Some(2));
        assert_eq!(blames(&anyhow::Error::from(failed()).context("while it measured")), Some(2));
        assert_eq!(blames(&AllReduceBenchError::NoSuchCall { call: "ncclAllReduce" }.into()), None);
    }
}
