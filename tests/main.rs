//! Stories that need more than one module: one file per story.
