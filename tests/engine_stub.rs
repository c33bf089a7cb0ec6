//! `--device` on machines whose GPU is missing or will not do: a stub driver answers, so that every sentence can
//! be seen on any machine.
#![cfg(all(feature = "cuda", feature = "cli"))]

mod common;
#[path = "../cuda-lazy/tests/stub/mod.rs"]
#[allow(dead_code)]
mod stub;

use std::path::Path;

use common::{command, fails, finish, parse_json};
use stub::StubDriver;

const MODEL: &str = "random:smollm2,layers=2";
const NO_DRIVER: &str = "/nowhere/libcuda.so.1";

/// The last line of a refusal, with a driver at `libcuda` that answers by `variables`.
fn refusal(libcuda: &Path, variables: &[(&str, &str)], model: &str, more: &[&str]) -> String {
    let args = [&["generate", "--prompt", "hi", "--device", "cuda", "--model", model], more].concat();
    let mut command = command(&args);
    command.env("FEWSYNC_LIBCUDA", libcuda).envs(variables.iter().copied());
    let stderr = fails(&finish(command.spawn().expect("the binary starts")), &args, 1, &[]);
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr.trim_end().to_owned()
}

#[test]
fn without_a_driver_cuda_is_refused_and_auto_takes_the_cpu() {
    let error = refusal(Path::new(NO_DRIVER), &[], MODEL, &[]);
    assert!(
        error.starts_with("error: no CUDA driver: /nowhere/libcuda.so.1 could not be opened ("),
        "{error}"
    );
    // Nobody expects a GPU to be used where there is none, so nothing is said.
    assert_eq!(chosen_automatically(Path::new(NO_DRIVER), MODEL, "1"), "");
}

#[test]
fn with_a_gpu_auto_says_why_it_takes_the_cpu() {
    let Some(stub) = StubDriver::build() else { return };
    for (model, tp, why) in [
        (MODEL, "3", "--tp 3 needs 3 GPUs"),
        ("random:tiny", "1", "there is no GPU kernel for a head width of 32"),
    ] {
        let stderr = chosen_automatically(&stub.path(), model, tp);
        assert!(stderr.starts_with(&format!("device: cpu, since {why}")), "{stderr}");
    }
}

/// What a run without `--device` says on stderr; it has to end up on the CPU.
fn chosen_automatically(libcuda: &Path, model: &str, tp: &str) -> String {
    let args = ["generate", "--prompt", "hi", "--model", model, "--tp", tp, "--max-tokens", "1", "--json"];
    let mut command = command(&args);
    let output = finish(command.env("FEWSYNC_LIBCUDA", libcuda).spawn().expect("the binary starts"));
    assert_eq!(parse_json(&output, &args)["device"], "cpu");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn gpus_that_will_not_do_are_refused_in_one_sentence() {
    let Some(stub) = StubDriver::build() else { return };
    let refusal = |variables: &[(&str, &str)], more: &[&str]| refusal(&stub.path(), variables, MODEL, more);
    let error = refusal(&[("STUB_VERSION", "11030")], &[]);
    assert!(error.contains("supports CUDA 11.3, but 11.4 or newer is needed"), "{error}");
    let error = refusal(&[("STUB_CAPABILITY", "75")], &[]);
    assert!(error.contains("has compute capability 7.5, but 8.0 (Ampere) or newer is needed"), "{error}");
    let error = refusal(&[], &["--tp", "3"]);
    assert!(error.contains("--tp 3 needs 3 GPUs, but this machine has 1: use --tp 1 or less"), "{error}");
    // Of the stub's GPUs only 0 and 1, 2 and 3 reach each other.
    let error = refusal(&[("STUB_DEVICES", "4")], &["--tp", "3"]);
    assert!(
        error.contains("(Stub GPU) cannot address the memory of cuda:2")
            && error.contains("--peer-memory host-staged"),
        "{error}"
    );
    let error = refusal(&[], &["--page-size", "48"]);
    assert!(error.contains("page size of 48: it has to be a power of two"), "{error}");
    // The stub has 1 GiB.
    let error = refusal(&[], &["--kv-tokens", "10000000"]);
    assert!(
        error.contains("1.00 GiB of 1.00 GiB free") && error.contains("KV cache for 10000000 tokens"),
        "{error}"
    );
    let error = self::refusal(&stub.path(), &[], "random:llama3-8b", &[]);
    assert!(error.contains("14.96 GiB of weights"), "{error}");
}
