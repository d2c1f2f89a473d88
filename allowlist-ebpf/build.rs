//! Linker options for the eBPF programs.

fn main() {
    // Headers are not aligned in a frame. Without this option, the compiler assembles an address from single bytes. On
    // a machine without unaligned loads, the verifier refuses the programs.
    println!("cargo::rustc-link-arg-bins=--cpu-features=+allows-misaligned-mem-access");
}
