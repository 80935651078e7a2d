//! Loops over arrays, in the widest instructions at hand.

/// Defines a function, and once more for AVX2 where the processor has it: loops over arrays become
/// its instructions.
macro_rules! vectorised {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$doc])*
        $vis fn $name($($argument: $type),*) {
            #[inline(always)]
            fn generic($($argument: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2($($argument: $type),*) {
                generic($($argument),*)
            }

            #[cfg(target_arch = "x86_64")]
            if std::arch::is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has just said that it has AVX2.
                return unsafe { avx2($($argument),*) };
            }
            generic($($argument),*)
        }
    };
}

pub(super) use vectorised;
