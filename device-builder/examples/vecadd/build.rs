use device_builder::{Arch, CudaBuilder};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = std::env::var("OUT_DIR")?;
    CudaBuilder::new("kernels").arch(Arch::Sm80).copy_to(format!("{out}/vecadd.ptx")).build()?;
    Ok(())
}
