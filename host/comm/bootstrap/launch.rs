//! Which rank of which world this process is, as its launcher says in the environment.
//!
//! | launcher | rank, world | where rank 0 listens |
//! |---|---|---|
//! | torchrun, or by hand | `RANK`, `WORLD_SIZE` | `MASTER_ADDR`, `MASTER_PORT` |
//! | Open MPI's mpirun | `OMPI_COMM_WORLD_RANK`, `…_SIZE` | these two; by itself if all ranks share a host |
//! | srun | `SLURM_PROCID`, `SLURM_STEP_NUM_TASKS` | these two; else the step's first host, a port from the job's number |
//!
//! The first that is there counts: mpirun inside an allocation, and torchrun under srun or mpirun, see the outer
//! launcher's variables, too.

use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    net::Ipv6Addr,
};

/// What a launcher has made of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Who started it.
    pub launcher: Launcher,
    /// Its rank.
    pub rank: usize,
    /// Number of ranks.
    pub world: usize,
    /// Its number among the ranks of its host, where the launcher says.
    pub local_rank: Option<usize>,
    /// Where rank 0 listens.
    pub address: Address,
}

/// Where rank 0 listens, as `HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// The user or the launcher says so.
    Given(String),
    /// What all ranks conclude from the launcher's variables.
    Concluded(String),
    /// Nothing says it: only MPI itself can.
    Unknown,
}

/// Who starts processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// torchrun, or a script that sets the same variables.
    Torchrun,
    /// Open MPI.
    OpenMpi,
    /// Slurm.
    Slurm,
}

/// Why an environment makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// Some of the variables that belong together are missing.
    #[error("{present} is set, but {missing} is not: set both, or neither to run as one process")]
    HalfSet {
        /// What is there.
        present: &'static str,
        /// What is not.
        missing: &'static str,
    },
    /// A variable is no number.
    #[error("{variable}={value} is not a whole number")]
    NotANumber {
        /// Its name.
        variable: &'static str,
        /// What it is set to.
        value: String,
    },
    /// A variable is no port.
    #[error("{variable}={port} is no port: set it to a number from 1 to 65535")]
    NoPort {
        /// Its name.
        variable: &'static str,
        /// What it is set to.
        port: usize,
    },
    /// A world without ranks.
    #[error("{variable}=0, but a world has at least one rank: set it to the number of processes")]
    NoRanks {
        /// The world's variable.
        variable: &'static str,
    },
    /// A rank that the world does not have.
    #[error("{variable}={rank}, but a world of {world} has ranks 0 to {}", world - 1)]
    NoSuchRank {
        /// The rank's variable.
        variable: &'static str,
        /// The rank.
        rank: usize,
        /// Number of ranks.
        world: usize,
    },
    /// Two variables say different things.
    #[error("{one} contradicts {other}: unset the one that is left over from elsewhere")]
    Contradiction {
        /// Name and value.
        one: String,
        /// Name and value.
        other: String,
    },
}

/// The variables of one launcher.
struct Names {
    launcher: Launcher,
    rank: &'static str,
    world: &'static [&'static str],
    local_rank: &'static str,
    local_world: &'static str,
}

const TORCHRUN: Names = Names {
    launcher: Launcher::Torchrun,
    rank: "RANK",
    world: &["WORLD_SIZE"],
    local_rank: "LOCAL_RANK",
    local_world: "LOCAL_WORLD_SIZE",
};
const OPEN_MPI: Names = Names {
    launcher: Launcher::OpenMpi,
    rank: "OMPI_COMM_WORLD_RANK",
    world: &["OMPI_COMM_WORLD_SIZE"],
    local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
    local_world: "OMPI_COMM_WORLD_LOCAL_SIZE",
};
const SLURM: Names = Names {
    launcher: Launcher::Slurm,
    rank: "SLURM_PROCID",
    world: &["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"],
    local_rank: "SLURM_LOCALID",
    local_world: "",
};

/// Ports that launchers leave to us to choose from: below those that systems give to outgoing connections.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// What a launcher says through `variable`, which looks one up; none for a process that was started alone.
///
/// # Errors
/// [`LaunchError`].
pub fn detect(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Launch>, LaunchError> {
    let variables = Variables(&|name| variable(name).filter(|value| !value.is_empty()));
    let torchrun = variables.place(&TORCHRUN)?;
    let open_mpi = variables.place(&OPEN_MPI)?;
    if let (Some((rank, world, _)), Some((mpi_rank, mpi_world, _))) = (torchrun, open_mpi)
        && (rank, world) != (mpi_rank, mpi_world)
    {
        let text = |rank_name, rank, world_name, world| format!("{rank_name}={rank} {world_name}={world}");
        return Err(LaunchError::Contradiction {
            one: text(TORCHRUN.rank, rank, TORCHRUN.world[0], world),
            other: text(OPEN_MPI.rank, mpi_rank, OPEN_MPI.world[0], mpi_world),
        });
    }
    // A batch script, and a shell in an allocation, see the job's variables, but are no step.
    let slurm = match variables.get("SLURM_STEP_ID") {
        Some(_) if torchrun.is_none() && open_mpi.is_none() => variables.place(&SLURM)?,
        _ => None,
    };
    let places = [(&TORCHRUN, torchrun), (&OPEN_MPI, open_mpi), (&SLURM, slurm)];
    let Some((names, (rank, world, local_rank))) = places.into_iter().find_map(|(n, p)| Some((n, p?))) else {
        return Ok(None);
    };
    if world == 1 {
        return Ok(None);
    }
    let address = variables.address(names, world)?;
    Ok(Some(Launch { launcher: names.launcher, rank, world, local_rank, address }))
}

/// The environment without empty variables, which say nothing.
struct Variables<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    fn get(&self, name: &str) -> Option<String> {
        (self.0)(name)
    }

    fn number(&self, variable: &'static str) -> Result<Option<usize>, LaunchError> {
        let Some(value) = self.get(variable) else { return Ok(None) };
        value.trim().parse().map(Some).map_err(|_| LaunchError::NotANumber { variable, value })
    }

    /// Rank, world and local rank, where this launcher has set them.
    fn place(&self, names: &Names) -> Result<Option<(usize, usize, Option<usize>)>, LaunchError> {
        let rank = self.number(names.rank)?;
        let set = names.world.iter().copied().find(|name| self.get(name).is_some());
        let world = set.map_or(Ok(None), |name| self.number(name))?;
        let (Some(rank), Some(world)) = (rank, world) else {
            let (rank_name, world_name) = (names.rank, names.world[0]);
            return match (rank, world) {
                (Some(_), None) => Err(LaunchError::HalfSet { present: rank_name, missing: world_name }),
                // Slurm's job has a number of tasks also outside of any step.
                (None, Some(_)) if names.launcher != Launcher::Slurm => {
                    Err(LaunchError::HalfSet { present: world_name, missing: rank_name })
                }
                _ => Ok(None),
            };
        };
        if world == 0 {
            return Err(LaunchError::NoRanks { variable: set.unwrap_or(names.world[0]) });
        }
        if rank >= world {
            return Err(LaunchError::NoSuchRank { variable: names.rank, rank, world });
        }
        Ok(Some((rank, world, self.number(names.local_rank)?)))
    }

    /// Where rank 0 listens.
    fn address(&self, names: &Names, world: usize) -> Result<Address, LaunchError> {
        let host = self.get("MASTER_ADDR").map(|host| match host.parse::<Ipv6Addr>() {
            Ok(_) => format!("[{host}]"),
            Err(_) => host,
        });
        let port = self.number("MASTER_PORT")?;
        if let Some(port) = port.filter(|&port| port == 0 || port > u16::MAX.into()) {
            return Err(LaunchError::NoPort { variable: "MASTER_PORT", port });
        }
        if names.launcher == Launcher::Torchrun {
            let (missing, present) = match (&host, port) {
                (None, _) => ("MASTER_ADDR", "RANK"),
                (_, None) => ("MASTER_PORT", "RANK"),
                (Some(host), Some(port)) => {
                    // Torchrun's agent listens on the port itself; its neighbour is ours.
                    let taken = self.get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True");
                    let port = if taken { port % usize::from(u16::MAX) + 1 } else { port };
                    return Ok(Address::Given(format!("{host}:{port}")));
                }
            };
            return Err(LaunchError::HalfSet { present, missing });
        }
        let (by_itself, job) = match names.launcher {
            Launcher::Slurm => (self.first_slurm_host(), ["SLURM_JOB_ID", "SLURM_STEP_ID"]),
            _ => {
                let here = self.number(names.local_world)? == Some(world);
                (here.then(|| "127.0.0.1".to_owned()), ["PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"])
            }
        };
        let job: Vec<_> = job.iter().filter_map(|name| self.get(name)).collect();
        let own_port = (!job.is_empty()).then(|| port_of(&job).into());
        Ok(match (host.clone().or(by_itself), port.or(own_port)) {
            (Some(at), Some(from)) if host.is_some() && port.is_some() => {
                Address::Given(format!("{at}:{from}"))
            }
            (Some(at), Some(from)) => Address::Concluded(format!("{at}:{from}")),
            _ => Address::Unknown,
        })
    }

    fn first_slurm_host(&self) -> Option<String> {
        let list = self.get("SLURM_STEP_NODELIST").or_else(|| self.get("SLURM_NODELIST"));
        list.and_then(|list| first_host(&list)).or_else(|| self.get("SLURM_LAUNCH_NODE_IPADDR"))
    }
}

/// A port that all processes of a job agree on, and that other jobs most likely do not have.
fn port_of(job: &[String]) -> u16 {
    let mut hasher = DefaultHasher::new();
    job.hash(&mut hasher);
    PORTS.start + (hasher.finish() % u64::from(PORTS.end - PORTS.start)) as u16
}

/// The first host of Slurm's list: `a1`, `a1,a2`, `a[01-04,7]-x,b` (one pair of brackets per name).
fn first_host(list: &str) -> Option<String> {
    let end = list.find([',', '[']).unwrap_or(list.len());
    let (prefix, rest) = list.split_at(end);
    let host = match rest.strip_prefix('[') {
        None => prefix.to_owned(),
        Some(rest) => {
            let (numbers, rest) = rest.split_once(']')?;
            let first = numbers.split([',', '-']).next()?;
            let suffix = rest.split(',').next()?;
            format!("{prefix}{first}{suffix}")
        }
    };
    Some(host).filter(|host| !host.is_empty() && !host.contains(['[', ']']))
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Torchrun => "RANK and WORLD_SIZE",
            Self::OpenMpi => "Open MPI",
            Self::Slurm => "srun",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `A=1 B=2` as an environment.
    fn env(text: &str) -> Result<Option<Launch>, String> {
        let pairs: Vec<_> = text.split_whitespace().filter_map(|pair| pair.split_once('=')).collect();
        let lookup = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, v)| v.to_string());
        detect(lookup).map_err(|error| error.to_string())
    }

    fn found(text: &str) -> (Launcher, usize, usize, Option<usize>, Option<String>) {
        let launch = env(text).unwrap().unwrap();
        let address = match launch.address {
            Address::Given(address) | Address::Concluded(address) => Some(address),
            Address::Unknown => None,
        };
        (launch.launcher, launch.rank, launch.world, launch.local_rank, address)
    }

    #[test]
    fn a_process_alone_is_alone() {
        for text in ["", "MASTER_ADDR=a MASTER_PORT=1", "RANK=0 WORLD_SIZE=1", "RANK= WORLD_SIZE="] {
            assert_eq!(env(text), Ok(None), "{text}");
        }
        // A batch script is no step of its job.
        assert_eq!(env("SLURM_JOB_ID=7 SLURM_NTASKS=4 SLURM_PROCID=0"), Ok(None));
        assert_eq!(env("OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=1"), Ok(None));
    }

    #[test]
    fn torchrun() {
        let text = "RANK=3 WORLD_SIZE=8 LOCAL_RANK=1 MASTER_ADDR=n0 MASTER_PORT=29500";
        assert_eq!(found(text), (Launcher::Torchrun, 3, 8, Some(1), Some("n0:29500".into())));
        let v6 = |host: &str| found(&text.replace("n0", host)).4;
        assert_eq!((v6("::1"), v6("[::1]")), (Some("[::1]:29500".into()), Some("[::1]:29500".into())));
        let agent = format!("{text} TORCHELASTIC_USE_AGENT_STORE=True");
        assert_eq!(found(&agent).4, Some("n0:29501".into()));
        // Under srun, its variables are those of the agents.
        let under = format!("{text} SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2");
        assert_eq!(found(&under), found(text));
    }

    #[test]
    fn open_mpi() {
        let one_host = "OMPI_COMM_WORLD_RANK=2 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=2 \
                        OMPI_COMM_WORLD_LOCAL_SIZE=4 PMIX_NAMESPACE=123";
        let (launcher, rank, world, local, address) = found(one_host);
        assert_eq!((launcher, rank, world, local), (Launcher::OpenMpi, 2, 4, Some(2)));
        let address = address.unwrap();
        let port: u16 = address.strip_prefix("127.0.0.1:").unwrap().parse().unwrap();
        assert!(PORTS.contains(&port));
        assert_ne!(found(&one_host.replace("=123", "=124")).4, Some(address), "another job, another port");
        // Several hosts: only MPI itself, or the user, can say where rank 0 is.
        let two_hosts = one_host.replace("LOCAL_SIZE=4", "LOCAL_SIZE=2");
        assert_eq!(found(&two_hosts).4, None);
        assert_eq!(found(&format!("{two_hosts} MASTER_ADDR=n0 MASTER_PORT=5")).4, Some("n0:5".into()));
        // What the user says is more than a guess: with MPI at hand, MPI is asked instead of that.
        let given = env(&format!("{one_host} MASTER_ADDR=n0 MASTER_PORT=5")).unwrap().unwrap().address;
        assert_eq!(given, Address::Given("n0:5".into()));
        assert!(matches!(env(one_host).unwrap().unwrap().address, Address::Concluded(_)));
        // In an allocation.
        let inside = format!("{one_host} SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1");
        assert_eq!(found(&inside), found(one_host));
    }

    #[test]
    fn slurm() {
        let text = "SLURM_STEP_ID=0 SLURM_JOB_ID=77 SLURM_PROCID=5 SLURM_STEP_NUM_TASKS=8 SLURM_LOCALID=1 \
                    SLURM_STEP_NODELIST=n[04-05]";
        let (launcher, rank, world, local, address) = found(text);
        assert_eq!((launcher, rank, world, local), (Launcher::Slurm, 5, 8, Some(1)));
        assert!(address.unwrap().starts_with("n04:"));
        assert_eq!(found(&format!("{text} MASTER_ADDR=x MASTER_PORT=9")).4, Some("x:9".into()));
        let odd = text.replace("n[04-05]", "r[1-2]n[04-05]");
        assert!(
            found(&format!("{odd} SLURM_LAUNCH_NODE_IPADDR=10.0.0.1")).4.unwrap().starts_with("10.0.0.1:")
        );
    }

    #[test]
    fn first_hosts_of_lists() {
        let first = |list| first_host(list);
        assert_eq!(first("a1"), Some("a1".into()));
        assert_eq!(first("a1,b2"), Some("a1".into()));
        assert_eq!(first("a[01-04,7],b"), Some("a01".into()));
        assert_eq!(first("a[3,7]-ib,b[1-2]"), Some("a3-ib".into()));
        assert_eq!(first("r[1-2]n[3-4]"), None);
        assert_eq!(first("a[1-2"), None);
        assert_eq!(first(""), None);
    }

    #[test]
    fn half_an_environment_gets_a_sentence() {
        let refused = |text: &str, needles: &[&str]| {
            let message = env(text).unwrap_err();
            assert!(needles.iter().all(|needle| message.contains(needle)), "{text}: {message}");
        };
        refused("RANK=1", &["RANK is set, but WORLD_SIZE is not"]);
        refused("WORLD_SIZE=4", &["WORLD_SIZE is set, but RANK is not"]);
        refused("RANK=1 WORLD_SIZE=4", &["MASTER_ADDR"]);
        refused("RANK=1 WORLD_SIZE=4 MASTER_ADDR=a", &["MASTER_PORT"]);
        refused("RANK=4 WORLD_SIZE=4 MASTER_ADDR=a MASTER_PORT=1", &["RANK=4", "0 to 3"]);
        refused("RANK=x WORLD_SIZE=4", &["RANK=x", "whole number"]);
        refused("RANK=0 WORLD_SIZE=4 MASTER_ADDR=a MASTER_PORT=70000", &["MASTER_PORT=70000", "1 to 65535"]);
        refused("RANK=0 WORLD_SIZE=0", &["WORLD_SIZE=0", "at least one"]);
        refused("OMPI_COMM_WORLD_RANK=1", &["OMPI_COMM_WORLD_SIZE"]);
        let both =
            "RANK=0 WORLD_SIZE=4 MASTER_ADDR=a MASTER_PORT=1 OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=4";
        refused(both, &["RANK=0 WORLD_SIZE=4 contradicts OMPI_COMM_WORLD_RANK=1"]);
    }
}
