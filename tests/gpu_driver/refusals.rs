//! What is refused or breaks names the call, the device and the reason.

use fewsync::driver::{Device, DevicePtr, GpuError, LaunchConfig, Result};

use crate::gpu::gpu;
use crate::{SM_80, address_and, is_emulated, on_each_gpu};

#[test]
fn errors_name_the_call_the_device_and_the_reason() -> Result<()> {
    on_each_gpu("errors", |device| {
        let refused = |error: Option<GpuError>, parts: &[&str]| {
            let sentence = error.expect("must be refused").to_string();
            println!("errors: {sentence}");
            assert!(sentence.contains(device.label()), "{sentence}");
            assert!(parts.iter().all(|part| sentence.contains(part)), "{sentence} should contain {parts:?}");
        };
        refused(
            device.allocate::<u8>(1 << 50).err(),
            &["out of memory", "1048576.00 GiB were asked for", "are free"],
        );
        let broken = SM_80.replacen("ld.param.u32", "ld.perhaps.u32", 1);
        let line = if is_emulated(device) { ":15:" } else { "line 15" };
        refused(device.load_module(&broken).err(), &["rejected the PTX", line, "CUDA_ERROR_"]);
        refused(
            device.load_module(&SM_80.replace(".version 7.4", ".version 99.0")).err(),
            &["version 99.0", "knows up to"],
        );
        refused(device.load_module(&SM_80.replace("sm_80", "sm_999a")).err(), &["sm_999a", "cannot run"]);
        refused(device.load_module(SM_80)?.kernel("nothing").err(), &["no kernel nothing"]);
        let stream = device.stream()?;
        let captured = stream.capture::<GpuError>(|| stream.synchronize()).err();
        let call = if is_emulated(device) { "synchronize_stream" } else { "cuStreamSynchronize" };
        refused(captured, &[call, "code 900"]);
        stream.synchronize()
    })
}

#[test]
fn a_missing_gpu_is_named() -> Result<()> {
    let Some((_guard, _)) = gpu("missing") else { return Ok(()) };
    let count = Device::cuda_count()?;
    let missing = Device::cuda(count).expect_err("one too many").to_string();
    assert_eq!(
        missing,
        format!("there is no cuda:{count}: the driver offers {count} GPU(s), numbered from 0")
    );
    Ok(())
}

/// Child of the test below: its context is lost at the end.
#[test]
#[ignore = "run by a_lost_context_is_named"]
fn child_illegal_address() {
    let Some((_guard, device)) = gpu("illegal address") else { return };
    let lose = || -> Result<()> {
        let (stream, kernel) = (device.stream()?, device.load_module(SM_80)?.kernel("advance")?);
        // SAFETY: there is none: address 16 is no memory. This process ends with it.
        unsafe { kernel.launch(&stream, &LaunchConfig::new(1, 1), &address_and(DevicePtr(16), 1))? };
        stream.synchronize()
    };
    println!("answer: {}", lose().expect_err("an illegal address"));
}

#[test]
fn a_lost_context_is_named() {
    let Some((_guard, device)) = gpu("lost context") else { return };
    let output = std::process::Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "refusals::child_illegal_address", "--ignored", "--nocapture"])
        .output()
        .expect("this binary runs");
    let printed = String::from_utf8_lossy(&output.stdout);
    let (_, sentence) = printed.split_once("answer: ").expect("an answer");
    println!("lost context: {}", sentence.lines().next().unwrap_or_default());
    assert!(sentence.starts_with(&format!("cuStreamSynchronize on {} failed", device.label())), "{sentence}");
    assert!(
        sentence.contains("CUDA_ERROR_ILLEGAL_ADDRESS") && sentence.contains("must be restarted"),
        "{sentence}"
    );
    device.synchronize().expect("another process's context is not affected");
}
