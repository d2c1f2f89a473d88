//! What the programs may ask of the kernel's machine.

fn main() {
    // Headers lie where a frame has them. The kernel's verifier refuses such loads where the machine cannot do them;
    // without this an address is put together from single bytes.
    println!("cargo::rustc-link-arg-bins=--cpu-features=+allows-misaligned-mem-access");
}
