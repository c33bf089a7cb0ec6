//! From bitcode to PTX: llvm-link, opt, llc.
//!
//! rustc's nvptx64 target writes LLVM bitcode into its rlibs, so no linker has to be called by
//! rustc: cargo builds the kernel crate as an rlib and the steps below join it with `core` and any
//! extra bitcode.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result, run};
use crate::{Arch, Toolchain};

/// The optimiser's passes; recorded in the PTX header.
const PASSES: &str = "internalize,globaldce,nvvm-reflect,default<O3>,globaldce";
/// An array that a loop indexes can live in registers only when the loop is unrolled completely, and
/// the default stops far below the size of a tile of accumulators. Loops of unknown length stay as
/// they are written.
const UNROLL: [&str; 2] = ["-unroll-threshold=20000", "-unroll-runtime=false"];

/// What goes into one PTX file.
pub(crate) struct LinkInput<'a> {
    /// The kernel crate and its dependencies: linked whole.
    pub(crate) crates: &'a [PathBuf],
    /// `core`, `compiler_builtins`: only what is needed.
    pub(crate) runtime: &'a [PathBuf],
    /// Further bitcode files: only what is needed.
    pub(crate) extra_bitcode: &'a [PathBuf],
    /// Symbols to keep visible beside the kernels.
    pub(crate) keep: &'a [String],
    /// Kernels to leave out.
    pub(crate) without: &'a [String],
    pub(crate) arch: Arch,
    pub(crate) scratch: &'a Path,
}

/// Text that `llc` wrote, and the launch bounds that the crate declares.
pub(crate) struct Linked {
    pub(crate) ptx: String,
    pub(crate) launch_bounds: Vec<String>,
}

/// The flags that decide the bytes, as recorded in the PTX header.
pub(crate) fn describe(arch: Arch) -> String {
    format!(
        "opt {} -passes={PASSES}; llc -O3 -mcpu={arch} -mattr=+ptx{}",
        UNROLL.join(" "),
        arch.ptx_version()
    )
}

/// Links, optimises and lowers; `None` when the crate exports no kernel.
pub(crate) fn link(toolchain: &Toolchain, input: &LinkInput) -> Result<Option<Linked>> {
    let scratch = input.scratch;
    let crates = extract_all(toolchain, input.crates, scratch)?;
    let runtime = extract_all(toolchain, input.runtime, scratch)?;

    let whole = scratch.join("crate.bc");
    run(toolchain.tool("llvm-link").args(&crates).arg("-o").arg(&whole), "join the crate's objects")?;
    let listing = run(toolchain.tool("llvm-dis").arg(&whole).args(["-o", "-"]), "list the crate's symbols")?;
    let is_wanted = |kernel: &str| !input.without.iter().any(|name| name == kernel);
    let mut kernels = exported_kernels(&listing);
    kernels.retain(|kernel| is_wanted(kernel));
    if kernels.is_empty() {
        return Ok(None);
    }

    let linked = scratch.join("linked.bc");
    let mut command = toolchain.tool("llvm-link");
    command.arg("--only-needed").arg(&whole).args(input.extra_bitcode).args(&runtime).arg("-o").arg(&linked);
    run(&mut command, "join the crate with core and the extra bitcode")?;

    let optimised = scratch.join("optimised.bc");
    let public: Vec<&str> = kernels.iter().chain(input.keep).map(String::as_str).collect();
    let mut command = toolchain.tool("opt");
    command.args(UNROLL).arg(format!("-passes={PASSES}"));
    command.arg(format!("--internalize-public-api-list={}", public.join(",")));
    run(command.arg(&linked).arg("-o").arg(&optimised), "optimise")?;

    let output = scratch.join("out.ptx");
    let mut command = toolchain.tool("llc");
    command.arg("-O3").arg(format!("-mcpu={}", input.arch));
    command.arg(format!("-mattr=+ptx{}", input.arch.ptx_version()));
    run(command.arg(&optimised).arg("-o").arg(&output), "generate PTX")?;

    let ptx = fs::read_to_string(&output).map_err(Error::io(output))?;
    let mut launch_bounds = launch_bound_symbols(&listing);
    launch_bounds.retain(|symbol| symbol.split('$').nth(1).is_none_or(is_wanted));
    Ok(Some(Linked { ptx, launch_bounds }))
}

/// Unpacks every rlib into a folder of its own and returns the object files, in name order.
fn extract_all(toolchain: &Toolchain, rlibs: &[PathBuf], scratch: &Path) -> Result<Vec<PathBuf>> {
    let mut objects = Vec::new();
    for rlib in rlibs {
        let dir = scratch.join(rlib.file_stem().unwrap_or_else(|| OsStr::new("rlib")));
        fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
        run(toolchain.tool("llvm-ar").arg("x").arg(rlib).current_dir(&dir), "unpack an rlib")?;
        let mut members = Vec::new();
        for entry in fs::read_dir(&dir).map_err(Error::io(&dir))? {
            let path = entry.map_err(Error::io(&dir))?.path();
            if path.extension() == Some(OsStr::new("o")) {
                members.push(path);
            }
        }
        members.sort();
        objects.append(&mut members);
    }
    Ok(objects)
}

/// Names of the functions defined with the kernel calling convention.
fn exported_kernels(listing: &str) -> Vec<String> {
    let definitions = listing.lines().filter(|line| line.starts_with("define "));
    let kernels = definitions.filter(|line| line.contains(" ptx_kernel "));
    let mut names: Vec<String> = kernels.filter_map(global_name).map(str::to_owned).collect();
    names.sort();
    names
}

/// Names of the marker statics that carry launch bounds (see [`crate::ptx`]).
fn launch_bound_symbols(listing: &str) -> Vec<String> {
    let globals = listing.lines().filter(|line| line.starts_with("@\"launch_bounds$"));
    let mut names: Vec<String> = globals.filter_map(global_name).map(str::to_owned).collect();
    names.sort();
    names
}

/// The first `@name` or `@"name"` on a line of LLVM assembly.
fn global_name(line: &str) -> Option<&str> {
    let rest = line.split_once('@')?.1;
    match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next(),
        None => rest.split(['(', ' ']).next(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "\
@\"launch_bounds$scale$256$2\" = local_unnamed_addr constant [1 x i8] zeroinitializer, align 1
@table = internal constant [4 x i32] zeroinitializer
define void @helper(i32 %0) unnamed_addr #0 {
define ptx_kernel void @scale([2 x i64] %0) unnamed_addr #2 {
define ptx_kernel void @add(ptr %0) unnamed_addr #2 {
declare ptx_kernel void @elsewhere(ptr)
";

    #[test]
    fn reads_kernels_and_launch_bounds_from_a_listing() {
        assert_eq!(exported_kernels(LISTING), ["add", "scale"]);
        assert_eq!(launch_bound_symbols(LISTING), ["launch_bounds$scale$256$2"]);
    }
}
