//! How a configuration key is defined: one row of [`keys!`], from which all that concerns the key follows. Pure.
//!
//! ```text
//! /// Boots that the new system may try before GRUB falls back to recovery.
//! tries as boot_tries: Number<u8, 1, 9>, default "3", argument "tries";
//! ```
//!
//! A key that was added after a version was published says `newer_than` that version: a recovery of it refuses the
//! whole file.
//!
//! The row gives the name in the file, the field of the checked configuration, the kind of value (its type, unit and
//! range), what applies when the key is not set (`required`, `default "VALUE"`, or `optional "WHAT HAPPENS THEN"`),
//! and the kernel argument that sets it, if there is one. Of the row are made the field of the layer as it is written,
//! the merging of layers, the range check, the kernel argument, and the key's entry in `docs/configuration.md` and in
//! the JSON schema.

use std::fmt::Display;

use super::error::ConfigError;

/// A kind of value: how it is written, what it may be, and what it becomes once it is checked.
pub trait ValueKind {
    /// The type in a configuration file.
    type Written;
    /// The type in the checked configuration.
    type Checked;
    /// The form of the value, for the JSON schema.
    const SHAPE: Shape;

    /// The values that are right, with type, unit and range, for errors and for the documentation.
    fn expected() -> String;

    /// A value that is right, as in a kernel argument.
    fn example() -> String;

    /// Reads the value from the text of a kernel argument, without the checks that [`ValueKind::check`] does.
    fn from_text(text: &str) -> Option<Self::Written>;

    /// Checks a value; `key` names it in the error.
    ///
    /// # Errors
    /// [`ConfigError::Value`] when it is out of range or of the wrong form.
    fn check(key: &'static str, written: Self::Written) -> Result<Self::Checked, ConfigError>;

    /// Returns what of a value can be used, for a program that goes on without the rest; the reason for which a part of
    /// it cannot be used joins the problems.
    fn usable(key: &'static str, written: Self::Written, problems: &mut Vec<ConfigError>) -> Option<Self::Written>
    where
        Self::Written: Clone,
    {
        match Self::check(key, written.clone()) {
            Ok(_) => Some(written),
            Err(error) => {
                problems.push(error);
                None
            }
        }
    }

    /// Whether the value counts as not set, as an empty list does.
    fn is_absent(_written: &Self::Written) -> bool {
        false
    }
}

/// The error for a value that a kind does not take.
pub(super) fn refused<K: ValueKind + ?Sized>(key: &'static str, value: &dyn Display) -> ConfigError {
    ConfigError::value(key, &value.to_string(), K::expected())
}

/// Reads a value from text: that of a kernel argument, or a default.
pub(super) fn read<K: ValueKind>(key: &'static str, text: &str) -> Result<K::Written, ConfigError> {
    K::from_text(text).ok_or_else(|| refused::<K>(key, &text))
}

/// The form of a value, as JSON schemas know it.
#[derive(Debug, Clone, Copy)]
pub enum Shape {
    /// One text, which fits the regular expression.
    Text(&'static str),
    /// A list of texts, each of which fits the regular expression.
    Texts(&'static str),
    /// A whole number.
    Whole {
        /// The least value.
        min: u64,
        /// The greatest value.
        max: u64,
        /// Whether 0 is right too.
        or_zero: bool,
    },
    /// True or false.
    Flag,
    /// A table with keys of its own.
    Table(&'static Section),
    /// A list of tables, each with the same keys.
    Tables(&'static Section),
}

impl Shape {
    /// The name of the form, for the documentation.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Texts(_) => "list of texts",
            Self::Whole { .. } => "whole number",
            Self::Flag => "flag",
            Self::Table(_) => "section",
            Self::Tables(_) => "list of sections",
        }
    }
}

/// Consequence of a key that no layer sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// The configuration cannot be used without the key.
    Required,
    /// This value, written as for a kernel argument.
    Default(&'static str),
    /// Nothing is set; the text says what happens then.
    Optional(&'static str),
}

/// A configuration key as the documentation, the JSON schema and the tests see it.
#[derive(Debug, Clone, Copy)]
pub struct ConfigKey {
    /// The name below its section.
    pub name: &'static str,
    /// The kernel argument that sets it, without the prefix `reflash.`.
    pub argument: Option<&'static str>,
    /// The last version that does not know the key; `None` for one that every version knows.
    pub newer_than: Option<&'static str>,
    /// The sentences that explain it.
    pub doc: &'static str,
    /// Consequence when no layer sets the key.
    pub presence: Presence,
    /// The form of the value.
    pub shape: Shape,
    /// The values that are right.
    pub expected: fn() -> String,
    /// A value that is right, as in a kernel argument.
    pub example: fn() -> String,
}

/// A section of the configuration file.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// The name between the brackets.
    pub path: &'static str,
    /// The phrase that says what it is about.
    pub doc: &'static str,
    /// The keys of the section, in the order of the documentation.
    pub keys: &'static [ConfigKey],
}

/// Makes of rows, one for each key: a layer struct for each section, and one struct of checked values.
macro_rules! keys {
    (
        $(#[$checked_meta:meta])*
        checked $checked:ident $({ $($(#[doc = $table_doc:literal])+ $table:ident: $table_layer:ident => $table_checked:ident;)+ })?
        $(
            $(#[doc = $section_doc:literal])+
            [$path:literal] $section:ident: $layer:ident {
                $(
                    $(#[doc = $doc:literal])+
                    $key:ident as $field:ident: $kind:ty, $presence:ident $($absent:literal)?
                        $(, argument $argument:literal)? $(, newer_than $newer:literal)?;
                )+
            }
        )+
    ) => {
        $(
            $(#[doc = $section_doc])+
            #[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
            #[serde(deny_unknown_fields, default)]
            pub struct $layer {
                $(
                    $(#[doc = $doc])+
                    pub $key: Option<<$kind as $crate::machine::config::keys::ValueKind>::Written>,
                )+
            }

            impl $layer {
                /// Takes every key that `later` sets.
                #[must_use]
                pub fn overridden_by(self, later: Self) -> Self {
                    Self { $($key: later.$key.or(self.$key),)+ }
                }

                /// Removes what of each value cannot be used; the reasons join the problems.
                pub(in $crate::machine::config) fn drop_wrong(
                    &mut self,
                    problems: &mut Vec<$crate::machine::config::ConfigError>,
                ) {
                    $(
                        let name = concat!($path, ".", stringify!($key));
                        self.$key = self.$key.take().and_then(|written| {
                            <$kind as $crate::machine::config::keys::ValueKind>::usable(name, written, problems)
                        });
                    )+
                }

                /// Sets the key that has this kernel argument, if one has it here. Whether one has.
                #[allow(dead_code, reason = "a section whose keys have no kernel argument needs none")]
                pub(in $crate::machine::config) fn set(
                    &mut self,
                    argument: &str,
                    text: &str,
                ) -> Result<bool, $crate::machine::config::ConfigError> {
                    match (argument, text) {
                        $($(($argument, text) => {
                            let name = concat!("reflash.", $argument);
                            self.$key = Some($crate::machine::config::keys::read::<$kind>(name, text)?);
                            Ok(true)
                        })?)+
                        _ => Ok(false),
                    }
                }
            }
        )+

        $(#[$checked_meta])*
        pub struct $checked {
            $($($(#[doc = $table_doc])+ pub $table: $table_checked,)+)?
            $($(
                $(#[doc = $doc])+
                pub $field: $crate::machine::config::keys::keys!(@type $presence $kind),
            )+)+
        }

        impl $checked {
            /// The sections that this is checked from, with every key.
            pub const SECTIONS: &[$crate::machine::config::keys::Section] = &[$(
                $crate::machine::config::keys::Section {
                    path: $path,
                    doc: concat!($($section_doc),+),
                    keys: &[$($crate::machine::config::keys::ConfigKey {
                        name: stringify!($key),
                        argument: $crate::machine::config::keys::keys!(@argument $($argument)?),
                        newer_than: $crate::machine::config::keys::keys!(@argument $($newer)?),
                        doc: concat!($($doc),+),
                        presence: $crate::machine::config::keys::keys!(@presence $presence $($absent)?),
                        shape: <$kind as $crate::machine::config::keys::ValueKind>::SHAPE,
                        expected: <$kind as $crate::machine::config::keys::ValueKind>::expected,
                        example: <$kind as $crate::machine::config::keys::ValueKind>::example,
                    },)+],
                },
            )+];

            /// Checks every key by itself and fills in the defaults.
            #[allow(clippy::too_many_arguments, reason = "one for each section, and the compiler asks for all")]
            fn checked(
                $($section: $layer,)+
                $($($table: $table_layer,)+)?
            ) -> Result<Self, $crate::machine::config::ConfigError> {
                Ok(Self {
                    $($($table: $table_checked::resolve($table)?,)+)?
                    $($(
                        $field: $crate::machine::config::keys::keys!(
                            @value $presence $kind, $section.$key, concat!($path, ".", stringify!($key)) $(, $absent)?
                        ),
                    )+)+
                })
            }
        }
    };

    (@type optional $kind:ty) => { Option<<$kind as $crate::machine::config::keys::ValueKind>::Checked> };
    (@type $set:ident $kind:ty) => { <$kind as $crate::machine::config::keys::ValueKind>::Checked };

    (@argument) => { None };
    (@argument $argument:literal) => { Some($argument) };

    (@presence required) => { $crate::machine::config::keys::Presence::Required };
    (@presence default $value:literal) => { $crate::machine::config::keys::Presence::Default($value) };
    (@presence optional $then:literal) => { $crate::machine::config::keys::Presence::Optional($then) };

    (@value required $kind:ty, $written:expr, $key:expr) => {
        match $written {
            Some(written) if !<$kind as $crate::machine::config::keys::ValueKind>::is_absent(&written) => {
                <$kind as $crate::machine::config::keys::ValueKind>::check($key, written)?
            }
            _ => return Err($crate::machine::config::ConfigError::Missing { key: $key }),
        }
    };
    (@value default $kind:ty, $written:expr, $key:expr, $default:literal) => {{
        let written = match $written {
            Some(written) => written,
            None => $crate::machine::config::keys::read::<$kind>($key, $default)?,
        };
        <$kind as $crate::machine::config::keys::ValueKind>::check($key, written)?
    }};
    (@value optional $kind:ty, $written:expr, $key:expr, $then:literal) => {
        $written.map(|written| <$kind as $crate::machine::config::keys::ValueKind>::check($key, written)).transpose()?
    };
}
pub(super) use keys;
