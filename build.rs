//! Embeds the kernels' PTX and has the compiler check it against the typed launches of `host/kernels/`.
//!
//! The PTX is that of `ptx/`, or, with `FEWSYNC_BUILD_DEVICE=1`, a fresh build of `device/` made in OUT_DIR.

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The PTX files, the one that a device should prefer first.
const ARCHS: [&str; 2] = ["sm_90a", "sm_80"];
/// The features of the kernel crate with files of their own: constant, table of typed launches.
const SETS: [(Option<&str>, &str, &str); 2] =
    [(None, "PTX", "FAMILIES"), (Some("nvshmem"), "NVSHMEM_PTX", "NVSHMEM_FAMILIES")];
/// A table of typed launches that one architecture's file has besides.
const ARCH_FAMILIES: (&str, &str, &str) = ("FAMILIES", "sm_90a", "SM_90A_FAMILIES");
const BUILD_VARIABLE: &str = "FEWSYNC_BUILD_DEVICE";

/// What a PTX file declares about one kernel.
struct Entry {
    name: String,
    param_bytes: usize,
    max_threads: u32,
}

fn main() -> Result<()> {
    println!("cargo:rerun-if-env-changed={BUILD_VARIABLE}");
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    let fresh = env::var_os(BUILD_VARIABLE).is_some_and(|value| value == "1");
    let mut code = String::new();
    for (feature, constant, families) in SETS {
        let what = feature.map_or_else(String::new, |feature| format!(" of the kernels that call {feature}"));
        writeln!(code, "/// The embedded PTX files{what}, the one to prefer first.")?;
        writeln!(code, "pub const {constant}: [Ptx; {}] = [", ARCHS.len())?;
        let mut checks = String::new();
        for arch in ARCHS {
            let path = if fresh { build(feature, arch, &out_dir)? } else { committed(feature, arch)? };
            let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            let entries = entries(&text).map_err(|e| format!("{}: {e}", path.display()))?;
            embed(&mut code, arch, &path, &entries)?;
            let (table, special, more) = ARCH_FAMILIES;
            let families = if (families, arch) == (table, special) {
                format!("{families}, {more}")
            } else {
                families.to_owned()
            };
            check(&mut checks, &file_name(feature, arch), &families, &entries)?;
        }
        writeln!(code, "];\n{checks}")?;
    }
    fs::write(out_dir.join("ptx.rs"), code)?;
    Ok(())
}

fn file_name(feature: Option<&str>, arch: &str) -> String {
    feature.map_or_else(|| format!("{arch}.ptx"), |feature| format!("{feature}.{arch}.ptx"))
}

/// The file in the source tree.
fn committed(feature: Option<&str>, arch: &str) -> Result<PathBuf> {
    let path = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("ptx").join(file_name(feature, arch));
    println!("cargo:rerun-if-changed={}", path.display());
    Ok(path)
}

/// Builds `device/` for one architecture, in a target folder of its own.
#[cfg(feature = "device-builder")]
fn build(feature: Option<&str>, arch: &str, out_dir: &Path) -> Result<PathBuf> {
    let path = out_dir.join(file_name(feature, arch));
    let arch: device_builder::Arch = arch.parse()?;
    let builder = || device_builder::CudaBuilder::new("device").arch(arch).target_dir(out_dir.join("device"));
    match feature {
        None => builder().copy_to(&path).build()?,
        Some(feature) => {
            let plain = builder().build()?;
            builder().feature(feature).without_kernels(plain.kernels()).copy_to(&path).build()?
        }
    };
    Ok(path)
}

#[cfg(not(feature = "device-builder"))]
fn build(_feature: Option<&str>, _arch: &str, _out_dir: &Path) -> Result<PathBuf> {
    Err(format!("{BUILD_VARIABLE}=1 needs the feature device-builder: add --features device-builder").into())
}

/// Reads the kernels' declarations: `.entry name(.param .align 8 .b8 name_param_0[40]) .maxntid 256, 1, 1`.
fn entries(ptx: &str) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for declaration in ptx.split(".entry ").skip(1) {
        let (name, rest) = declaration.split_once('(').ok_or("an .entry without parameters")?;
        let (params, rest) = rest.split_once(')').ok_or("an .entry without an end of its parameters")?;
        let unreadable = |what: &str| format!("kernel {name}: no readable {what}");
        if params.matches(".param").count() != 1 {
            return Err(format!("kernel {name}: not exactly one parameter, a struct by value").into());
        }
        let bytes = params.split_once(".b8 ").and_then(|(_, array)| array.split_once('['));
        let bytes = bytes.and_then(|(_, rest)| rest.split_once(']')).map(|(bytes, _)| bytes.parse());
        let directives = rest.split('{').next().unwrap_or_default();
        let threads = directives.split_once(".maxntid").and_then(|(_, rest)| rest.split(',').next());
        entries.push(Entry {
            name: name.trim().to_owned(),
            param_bytes: bytes.and_then(|b| b.ok()).ok_or_else(|| unreadable(".param .b8 array"))?,
            max_threads: threads.and_then(|t| t.trim().parse().ok()).ok_or_else(|| unreadable(".maxntid"))?,
        });
    }
    Ok(entries)
}

/// The constant that holds the file.
fn embed(code: &mut String, arch: &str, path: &Path, entries: &[Entry]) -> Result<()> {
    writeln!(code, "    Ptx {{ arch: {arch:?}, text: include_str!({path:?}), entries: &[")?;
    for Entry { name, param_bytes, max_threads } in entries {
        writeln!(
            code,
            "        Entry {{ name: {name:?}, param_bytes: {param_bytes}, max_threads: {max_threads} }},"
        )?;
    }
    writeln!(code, "    ] }},")?;
    Ok(())
}

/// Assertions that every kernel has a typed launch with as many bytes of parameters, and that there is no typed
/// launch without a kernel.
fn check(code: &mut String, file: &str, families: &str, entries: &[Entry]) -> Result<()> {
    for Entry { name, param_bytes, .. } in entries {
        writeln!(
            code,
            "const _: () = assert!(typed_param_bytes(&[{families}], {name:?}) != 0, \"{file}: kernel {name} has no typed \
             launch in host/kernels\");\n\
             const _: () = assert!(matches!(typed_param_bytes(&[{families}], {name:?}), 0 | {param_bytes}), \"{file}: kernel {name} takes \
             {param_bytes} bytes of parameters, its struct in device/src/params.rs has another size\");"
        )?;
    }
    writeln!(
        code,
        "const _: () = assert!(typed_count(&[{families}]) == {}, \"{file}: host/kernels launches kernels that the file does \
         not have\");",
        entries.len()
    )?;
    Ok(())
}
