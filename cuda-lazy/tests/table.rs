//! `src/table.rs` is what cust_raw declares, no more and no less. With `CUDA_LAZY_UPDATE=1` this writes it.
//! (That each signature equals cust_raw's is checked by the compiler, in `entry_points!`.)

use std::path::{Path, PathBuf};
use std::process::Command;

/// These two are defined by hand, because they must answer without a driver.
const BY_HAND: [&str; 2] = ["cuGetErrorString", "cuGetErrorName"];

const HEADER: &str = "\
//! Generated from cust_raw 0.11.3 by `CUDA_LAZY_UPDATE=1 cargo test -p cuda-lazy --test table`; do not edit.
#![allow(non_snake_case, clippy::too_many_arguments)]

use std::ffi::*;

use cust_raw::*;

use crate::shim::{entry_points, known_results};
";

/// This machine's target: other platforms' packages need not have been downloaded.
fn host() -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().expect("rustc runs");
    let version = String::from_utf8(output.stdout).expect("rustc prints UTF-8");
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.expect("rustc names its host").to_owned()
}

fn cust_raw_source() -> String {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--offline", "--locked"])
        .args(["--filter-platform", &host(), "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    let package = packages.iter().find(|package| package["name"] == "cust_raw").expect("cust_raw is used");
    assert_eq!(package["version"], "0.11.3");
    let manifest = PathBuf::from(package["manifest_path"].as_str().expect("a path"));
    std::fs::read_to_string(manifest.with_file_name("src").join("cuda.rs")).expect("cust_raw's source")
}

/// `fn name(arg: type, …);` of every function in cust_raw's extern blocks, one line each.
fn declarations(source: &str) -> Vec<String> {
    let one = |declaration: &str| {
        let (signature, rest) = declaration.split_once(';').expect("a declaration ends");
        assert!(!signature.contains('{'), "not a declaration: {rest}");
        let flat = signature.split_whitespace().collect::<Vec<_>>().join(" ");
        let (call, result) = flat.rsplit_once("->").expect("it returns something");
        assert_eq!(result.trim(), "CUresult", "{flat}");
        let call = call.trim().replace("::std::os::raw::", "").replace("( ", "(").replace(", )", ")");
        format!("fn cu{call};")
    };
    source.split("pub fn cu").skip(1).map(one).collect()
}

fn result_codes(source: &str) -> Vec<&str> {
    let (_, body) = source.split_once("pub enum cudaError_enum {").expect("the result enum");
    let (body, _) = body.split_once('}').expect("its end");
    body.lines().filter_map(|line| line.trim().split_once(" = ")).map(|(name, _)| name).collect()
}

fn generate(source: &str) -> String {
    let mut text = HEADER.to_owned();
    text += "\n#[rustfmt::skip]\nentry_points! {\n";
    for declaration in declarations(source) {
        let name = declaration["fn ".len()..].split('(').next().expect("a name");
        if !BY_HAND.contains(&name) {
            text += &format!("    {declaration}\n");
        }
    }
    text += "}\n\n#[rustfmt::skip]\nknown_results! {\n";
    for name in result_codes(source) {
        text += &format!("    {name},\n");
    }
    text + "}\n"
}

#[test]
fn the_table_is_what_cust_raw_declares() {
    let source = cust_raw_source();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/table.rs");
    let generated = generate(&source);
    if std::env::var_os("CUDA_LAZY_UPDATE").is_some() {
        std::fs::write(&path, &generated).expect("the table can be written");
    }
    let checked_in = std::fs::read_to_string(&path).expect("the table");
    assert!(
        checked_in == generated,
        "src/table.rs differs from cust_raw's declarations; its header says how to update"
    );
    assert_eq!(declarations(&source).len(), cuda_lazy::ENTRY_POINTS.len() + BY_HAND.len());
}
