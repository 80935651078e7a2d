//! The same source, compiled once more for each width of registers.

/// Defines `$name`, which runs `$body` compiled for the processor at hand. `FUSED` in it: whether
/// that has fused multiply-adds.
macro_rules! vectorised {
    ($(#[$doc:meta])* $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)? $body:block) => {
        $(#[$doc])*
        pub(crate) fn $name($($argument: $type,)* cpu: Cpu) $(-> $result)? {
            #[allow(clippy::extra_unused_type_parameters)]
            #[inline(always)]
            fn generic<const FUSED: bool>($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
            fn wide($($argument: $type),*) $(-> $result)? {
                generic::<true>($($argument),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn half_as_wide($($argument: $type),*) $(-> $result)? {
                generic::<true>($($argument),*)
            }

            match cpu {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: these sets exist only where the processor has these instructions.
                Cpu::Avx512F | Cpu::Avx512 | Cpu::Avx512Bf16 | Cpu::Amx => unsafe { wide($($argument),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: these exist only where the processor has AVX2 and FMA.
                Cpu::Avx2 | Cpu::AvxVnni => unsafe { half_as_wide($($argument),*) },
                _ => generic::<false>($($argument),*),
            }
        }
    };
}

pub(in crate::kernels) use vectorised;
