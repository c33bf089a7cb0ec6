//! NCCL in processes of their own: it reads NCCL_ALGO and NCCL_PROTO once, and a fault in it ends only the child.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::record::AUTOMATIC;

/// Longest that a child may take; NCCL itself has no limit.
const LIMIT: Duration = Duration::from_secs(120);
/// Between two looks at a child.
const LOOK: Duration = Duration::from_millis(20);

/// NCCL's algorithm and protocol; none is its own choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variant(Option<(&'static str, &'static str)>);

impl Variant {
    /// NCCL's own choice.
    pub const AUTOMATIC: Self = Self(None);

    /// NCCL's own choice, and everything that can be forced inside a node without multicast.
    pub fn all() -> Vec<Self> {
        let forced = ["Ring", "Tree"].into_iter().flat_map(|algorithm| {
            ["LL", "LL128", "Simple"].into_iter().map(move |protocol| Self(Some((algorithm, protocol))))
        });
        std::iter::once(Self::AUTOMATIC).chain(forced).collect()
    }

    /// As in results: `auto`, `ring-ll128`.
    pub fn name(self) -> String {
        match self.0 {
            None => AUTOMATIC.to_owned(),
            Some((algorithm, protocol)) => format!("{algorithm}-{protocol}").to_lowercase(),
        }
    }

    /// What its process finds in its environment. NVLink multicast stays off.
    pub fn environment(self) -> Vec<(&'static str, &'static str)> {
        let mut variables = vec![("NCCL_NVLS_ENABLE", "0")];
        if let Some((algorithm, protocol)) = self.0 {
            variables.extend([("NCCL_ALGO", algorithm), ("NCCL_PROTO", protocol)]);
        }
        variables
    }
}

/// Runs this program again with these arguments, and returns what it prints.
///
/// # Errors
/// Why there is no result, in one sentence: the child's last line of errors, or that it took too long.
pub fn run(variant: Variant, arguments: &[String]) -> Result<String, String> {
    let program = std::env::current_exe().map_err(|e| format!("this program's file is not known ({e})"))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for other in ["NCCL_ALGO", "NCCL_PROTO"] {
        command.env_remove(other);
    }
    command.envs(variant.environment());
    // The child is a process by itself, whatever launched this one.
    let launchers = ["OMPI_", "PMIX_", "SLURM_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "TORCHELASTIC_"];
    for (name, _) in std::env::vars_os() {
        if launchers.iter().any(|launcher| name.to_string_lossy().starts_with(launcher)) {
            command.env_remove(name);
        }
    }
    let child = command.spawn().map_err(|e| format!("no process could be started ({e})"))?;
    finish(child, LIMIT)
}

fn finish(mut child: Child, limit: Duration) -> Result<String, String> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        let stdout = scope.spawn(|| read(stdout));
        let stderr = scope.spawn(|| read(stderr));
        let start = Instant::now();
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break Ok(status),
                Ok(None) if start.elapsed() > limit => {
                    // It may have ended just now.
                    drop(child.kill());
                    drop(child.wait());
                    break Err(format!("it did not end within {limit:?}"));
                }
                Ok(None) => std::thread::sleep(LOOK),
                Err(e) => break Err(format!("it could not be waited for ({e})")),
            }
        };
        let text = |thread: std::thread::ScopedJoinHandle<'_, String>| thread.join().unwrap_or_default();
        let (stdout, stderr) = (text(stdout), text(stderr));
        let status = status?;
        if status.success() {
            return Ok(stdout);
        }
        let last = stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let last = last.strip_prefix("error: ").unwrap_or(last);
        Err(if last.is_empty() { status.to_string() } else { last.to_owned() })
    })
}

fn read(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    pipe.into_iter().for_each(|mut pipe| drop(pipe.read_to_end(&mut bytes)));
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_named_by_what_they_force() {
        let names: Vec<String> = Variant::all().into_iter().map(Variant::name).collect();
        let forced = ["ring-ll", "ring-ll128", "ring-simple", "tree-ll", "tree-ll128", "tree-simple"];
        assert_eq!(names[0], "auto");
        assert_eq!(names[1..], forced);
        let environment = Variant::all()[5].environment();
        let expected = [("NCCL_NVLS_ENABLE", "0"), ("NCCL_ALGO", "Tree"), ("NCCL_PROTO", "LL128")];
        assert_eq!(environment, expected);
        assert!(Variant::all().into_iter().all(|v| v.environment().contains(&("NCCL_NVLS_ENABLE", "0"))));
    }

    #[cfg(unix)]
    #[test]
    fn a_child_that_fails_or_hangs_says_why() {
        let child = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        assert_eq!(finish(child("echo a,b"), LIMIT), Ok("a,b\n".into()));
        let failed = finish(child("echo x >&2; echo 'error: no NCCL' >&2; exit 1"), LIMIT);
        assert_eq!(failed, Err("no NCCL".into()));
        assert_eq!(finish(child("exit 3"), LIMIT), Err("exit status: 3".into()));
        let hung = finish(child("exec sleep 60"), Duration::from_millis(50));
        assert_eq!(hung, Err("it did not end within 50ms".into()));
    }
}
