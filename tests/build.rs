//! Builds the object file of `tests/ebpf`, which the library exports.

fn main() {
    allowlist_ebpf_build::main("allowlist-bench-ebpf", "tests/ebpf");
}
