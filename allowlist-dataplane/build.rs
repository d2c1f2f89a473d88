//! Builds the eBPF object that `allowlist` carries.

fn main() {
    allowlist_ebpf_build::main("allowlist-ebpf", "allowlist-ebpf");
}
