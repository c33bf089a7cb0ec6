//! `device-builder refresh` writes the committed PTX, `device-builder check` says whether it is stale.

mod target;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use device_builder::{Arch, CudaBuilder, Header, Ptx, Ptxas, Resources, Toolchain, source_hash};

use self::target::{Target, open_features};

/// Compiles a kernel crate to PTX, or checks committed PTX against its sources.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Builds every architecture and writes OUT/ARCH.ptx, OUT/FEATURE.ARCH.ptx and OUT/resources.toml.
    Refresh(Paths),
    /// Fails when committed PTX is stale, does not assemble, spills or has a stack.
    Check {
        #[command(flatten)]
        paths: Paths,
        /// Also builds a copy of the crate under another path and compares the bytes.
        #[arg(long)]
        relocated: bool,
    },
    /// Says which toolchain would be used.
    Toolchain,
}

#[derive(Args)]
struct Paths {
    /// The kernel crate.
    #[arg(long, default_value = "device")]
    device: PathBuf,
    /// The folder of generated files.
    #[arg(long, default_value = "ptx")]
    out: PathBuf,
    /// Architectures, oldest first.
    #[arg(long, value_delimiter = ',', default_value = "sm_80,sm_90a")]
    arch: Vec<Arch>,
}

impl Paths {
    /// The files: one for each architecture, then those of each feature that has files of its own.
    fn targets(&self) -> Result<Vec<Target>> {
        let features = open_features(&self.device)?;
        let features = std::iter::once(None).chain(features.into_iter().map(Some));
        let of = |feature: Option<String>| {
            self.arch.iter().map(move |&arch| Target { arch, feature: feature.clone() })
        };
        Ok(features.flat_map(of).collect())
    }

    fn ptx(&self, target: &Target) -> PathBuf {
        self.out.join(format!("{target}.ptx"))
    }

    fn resources(&self) -> PathBuf {
        self.out.join("resources.toml")
    }
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Refresh(paths) => refresh(&paths),
        Command::Check { paths, relocated } => check(&paths, relocated),
        Command::Toolchain => {
            let toolchain = Toolchain::find()?;
            println!("{} ({})", toolchain.identity(), toolchain.rustc().display());
            Ok(())
        }
    }
}

fn refresh(paths: &Paths) -> Result<()> {
    let ptxas = Ptxas::find()?;
    let targets = paths.targets()?;
    let toolchain = toolchain_for_refresh(paths, &targets)?;
    let mut table = BTreeMap::new();
    for target in targets {
        let ptx = build(&paths.device, &paths.device.join("target"), &target, &toolchain)?;
        let resources = assemble(&ptxas, ptx.text(), &target)?;
        let path = paths.ptx(&target);
        fs::create_dir_all(&paths.out)?;
        fs::write(&path, ptx.text())?;
        println!("{}: {} kernels, {}", path.display(), ptx.kernels().len(), toolchain.identity());
        table.insert(target, resources);
    }
    fs::write(paths.resources(), render_resources(&table, ptxas.version()))?;
    refuse_local_memory(&table)
}

/// The recorded toolchain while it is here, so that a refresh changes only what the sources changed.
fn toolchain_for_refresh(paths: &Paths, targets: &[Target]) -> Result<Toolchain> {
    let recorded = targets.first().and_then(|target| {
        let path = paths.ptx(target);
        Header::parse(&fs::read_to_string(&path).ok()?, &path).ok()
    });
    match recorded.and_then(|header| Toolchain::find_recorded(&header.toolchain)) {
        Some(toolchain) => Ok(toolchain),
        None => Ok(Toolchain::find()?),
    }
}

fn check(paths: &Paths, relocated: bool) -> Result<()> {
    let ptxas = Ptxas::find()?;
    let sources = source_hash(&paths.device)?;
    let mut table = BTreeMap::new();
    for target in paths.targets()? {
        let path = paths.ptx(&target);
        let committed = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let header = Header::parse(&committed, &path)?;
        let device = paths.device.display();
        ensure!(
            header.sources == sources,
            "{} was not made from {device} as it is now; run `device-builder refresh` and commit the result",
            path.display()
        );
        table.insert(target.clone(), assemble(&ptxas, &committed, &target)?);
        let Some(toolchain) = Toolchain::find_recorded(&header.toolchain) else {
            check_with_another_toolchain(paths, &target, &ptxas, &header)?;
            continue;
        };
        let rebuilt = build(&paths.device, &paths.device.join("target"), &target, &toolchain)?;
        same_bytes(&path, &committed, rebuilt.text())?;
        if relocated {
            same_bytes(&path, &committed, build_elsewhere(&paths.device, &target, &toolchain)?.text())?;
        }
        println!("{}: the recorded toolchain gives the same bytes", path.display());
    }
    refuse_local_memory(&table)?;
    check_resources(paths, &table, ptxas.version())
}

/// Without the recorded toolchain bytes may differ, but what is built must assemble just as well.
fn check_with_another_toolchain(
    paths: &Paths,
    target: &Target,
    ptxas: &Ptxas,
    header: &Header,
) -> Result<()> {
    let toolchain = Toolchain::find()?;
    let rebuilt = build(&paths.device, &paths.device.join("target"), target, &toolchain)?;
    refuse_local_memory(&BTreeMap::from([(target.clone(), assemble(ptxas, rebuilt.text(), target)?)]))?;
    println!(
        "{target}: assembles with {}; bytes not compared (made with {})",
        toolchain.identity(),
        header.toolchain
    );
    Ok(())
}

fn build(device: &Path, target_dir: &Path, target: &Target, toolchain: &Toolchain) -> Result<Ptx> {
    let builder =
        || CudaBuilder::new(device).arch(target.arch).toolchain(toolchain.clone()).target_dir(target_dir);
    let Some(feature) = &target.feature else { return Ok(builder().build()?) };
    let plain = builder().build()?;
    Ok(builder().feature(feature).without_kernels(plain.kernels()).build()?)
}

/// Builds a copy of the crate in a temporary folder, with a target folder of its own.
fn build_elsewhere(device: &Path, target: &Target, toolchain: &Toolchain) -> Result<Ptx> {
    let elsewhere = tempfile::tempdir()?;
    let copy = elsewhere.path().join("another-checkout");
    copy_crate(device, &copy)?;
    build(&copy, &elsewhere.path().join("target"), target, toolchain)
}

fn copy_crate(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_name() == "target" {
            continue;
        }
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_crate(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// What a feature's file leaves open stays open.
fn assemble(ptxas: &Ptxas, ptx: &str, target: &Target) -> Result<Vec<Resources>> {
    let resources = ptxas.assemble(ptx, target.arch, target.feature.is_some());
    resources.with_context(|| format!("the PTX for {target} does not assemble"))
}

fn same_bytes(path: &Path, committed: &str, rebuilt: &str) -> Result<()> {
    let path = path.display();
    match committed.lines().zip(rebuilt.lines()).position(|(a, b)| a != b) {
        None if committed.len() == rebuilt.len() => Ok(()),
        None => bail!("{path} and a rebuild with the recorded toolchain differ in length"),
        Some(line) => bail!("{path} differs from a rebuild with the recorded toolchain at line {}", line + 1),
    }
}

fn refuse_local_memory(table: &BTreeMap<Target, Vec<Resources>>) -> Result<()> {
    let offenders: Vec<String> = table
        .iter()
        .flat_map(|(target, kernels)| kernels.iter().map(move |kernel| (target, kernel)))
        .filter(|(_, kernel)| kernel.stack_bytes + kernel.spill_bytes > 0)
        .map(|(target, k)| {
            format!("{target} {}: {} B stack, {} B spills", k.kernel, k.stack_bytes, k.spill_bytes)
        })
        .collect();
    ensure!(offenders.is_empty(), "kernels that use local memory:\n{}", offenders.join("\n"));
    Ok(())
}

fn check_resources(paths: &Paths, table: &BTreeMap<Target, Vec<Resources>>, version: &str) -> Result<()> {
    let path = paths.resources();
    let committed = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    if !committed.contains(&format!("ptxas = \"{version}\"")) {
        println!("{}: made by another ptxas than {version}; not compared", path.display());
        return Ok(());
    }
    ensure!(
        committed == render_resources(table, version),
        "{} is stale; run `device-builder refresh` and commit the result",
        path.display()
    );
    Ok(())
}

fn render_resources(table: &BTreeMap<Target, Vec<Resources>>, version: &str) -> String {
    let mut text = String::from(
        "# Generated by device-builder; do not edit. What `ptxas -v` reports per kernel;\n\
         # dynamic shared memory is the launch's and not counted.\n",
    );
    let _ = writeln!(text, "ptxas = \"{version}\"");
    for (target, kernels) in table {
        let _ = writeln!(text, "\n[{target}]");
        for k in kernels {
            let _ = writeln!(
                text,
                "{} = {{ registers = {}, shared_bytes = {}, stack_bytes = {}, spill_bytes = {} }}",
                k.kernel, k.registers, k.shared_bytes, k.stack_bytes, k.spill_bytes
            );
        }
    }
    text
}
