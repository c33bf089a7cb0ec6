//! Every PE stores its number at the next one, from the host.
//!
//! Needs a GPU and a process per PE: start each with RANK, WORLD_SIZE and CUDA_VISIBLE_DEVICES set, and the name of a
//! file that all of them see (it must not exist yet):
//!
//!     for r in 0 1; do RANK=$r WORLD_SIZE=2 CUDA_VISIBLE_DEVICES=$r cargo run --example ring -- /tmp/id & done; wait
//!
//! Expect `PE 1 of 2 (NVSHMEM 3.4.5) heard from PE 0`, one line per PE.

use std::path::Path;
use std::time::Duration;

use nvshmem_sys::{Library, Nvshmem, UniqueId};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let number = |name: &str| -> Result<usize, Box<dyn std::error::Error>> {
        Ok(std::env::var(name).map_err(|_| format!("{name} is not set"))?.parse()?)
    };
    let (rank, ranks) = (number("RANK")?, number("WORLD_SIZE")?);
    let file = std::env::args().nth(1).ok_or("usage: ring FILE")?;
    let library = Library::open()?;
    let release = library.release();
    let id = if rank == 0 { publish(&library, Path::new(&file))? } else { read(Path::new(&file))? };

    let nvshmem = Nvshmem::init(library, id, rank, ranks)?;
    let memory = nvshmem.allocate(8)?;
    let next = (nvshmem.pe() + 1) % nvshmem.n_pes();
    let (api, cell) = (nvshmem.library().api(), memory.address() as *mut u64);
    // SAFETY: symmetric memory of 8 bytes; both PEs exist.
    let heard = unsafe {
        (api.nvshmem_uint64_p)(cell, nvshmem.pe() as u64, next as i32);
        nvshmem.barrier();
        (api.nvshmem_uint64_g)(cell, nvshmem.pe() as i32)
    };
    println!("PE {} of {} (NVSHMEM {release}) heard from PE {heard}", nvshmem.pe(), nvshmem.n_pes());
    nvshmem.barrier();
    Ok(())
}

/// A new id, in the file whole or not at all.
fn publish(library: &Library, file: &Path) -> Result<UniqueId, Box<dyn std::error::Error>> {
    let id = UniqueId::new(library)?;
    let part = file.with_extension("part");
    std::fs::write(&part, id.to_bytes())?;
    std::fs::rename(part, file)?;
    Ok(id)
}

fn read(file: &Path) -> Result<UniqueId, Box<dyn std::error::Error>> {
    while !file.exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let bytes = std::fs::read(file)?;
    Ok(UniqueId::from_bytes(bytes.try_into().map_err(|_| "the file holds no id")?))
}
