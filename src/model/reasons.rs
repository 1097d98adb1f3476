//! Closed enums of reasons, each with the text that metrics have for it.

/// Declares an enum whose variants have a text, with the list of all variants. A variant, its place in the list and its text cannot
/// differ, since they are written once.
macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(usize)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// All reasons, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The reason as a metric's label value.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

pub(crate) use reasons;
