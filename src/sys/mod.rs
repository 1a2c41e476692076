//! The only home of nix, rustix and `unsafe`.
