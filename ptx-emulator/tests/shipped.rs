//! The repository's own PTX: every kernel decodes.

use ptx_emulator::Module;

fn shipped(name: &str) -> Module {
    let path = format!("{}/../ptx/{name}", env!("CARGO_MANIFEST_DIR"));
    let source = std::fs::read_to_string(&path).unwrap();
    Module::new(name, &source).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_kernel_of_both_architectures_decodes() {
    for name in ["sm_80.ptx", "sm_90a.ptx"] {
        let module = shipped(name);
        assert!(module.kernels().len() >= 32, "{name}");
        for kernel in module.kernels() {
            assert!(kernel.instructions() > 10 && kernel.param_bytes() > 0, "{name}: {}", kernel.name());
        }
    }
}
