//! Matrix products by cuBLASLt, which is loaded on first use.

use std::{collections::HashMap, ffi::c_void};

use cudarc::{
    cublaslt::{
        result::{self, CublasError},
        sys,
    },
    driver,
};

use super::driver::{Product, ProductNumber, Stored};

/// Cache key of an algorithm: types, sizes, strides of rows and matrices, switches, and the alignment of the
/// matrices.
type Key = (ProductNumber, ProductNumber, [usize; 4], [[usize; 2]; 3], [bool; 4], [u32; 3]);

/// cuBLASLt's handle, workspace, and the algorithms chosen so far.
pub(super) struct Multiplier {
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    chosen: HashMap<Key, sys::cublasLtMatmulAlgo_t>,
}

// SAFETY: the handle may be used from any thread, one at a time, which the mutex around this ensures.
unsafe impl Send for Multiplier {}

/// A descriptor and the function that destroys it.
struct Owned<T: Copy>(T, unsafe fn(T) -> Result<(), CublasError>);

impl<T: Copy> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: created by the matching function, and this is the only handle. A failure leaves nothing to do.
        let _ = unsafe { (self.1)(self.0) };
    }
}

fn data_type(number: ProductNumber) -> sys::cudaDataType {
    match number {
        ProductNumber::F32 => sys::cudaDataType::CUDA_R_32F,
        ProductNumber::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        ProductNumber::F16 => sys::cudaDataType::CUDA_R_16F,
    }
}

/// The largest power of two that divides an address, capped at the largest alignment that affects an algorithm.
fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(8)
}

/// The layout of a matrix `[rows, columns]`, or of a batch of them.
fn layout(
    number: ProductNumber,
    stored: &Stored,
    [rows, columns]: [usize; 2],
    batch: usize,
) -> Result<Owned<sys::cublasLtMatrixLayout_t>, CublasError> {
    use sys::cublasLtMatrixLayoutAttribute_t as Spacing;
    let (rows, columns) = if stored.transposed { (columns, rows) } else { (rows, columns) };
    let distance = i64::try_from(stored.row).unwrap_or(i64::MAX);
    let made = result::create_matrix_layout(data_type(number), columns as u64, rows as u64, distance)?;
    let made = Owned(made, result::destroy_matrix_layout);
    if batch > 1 {
        let count = i32::try_from(batch).unwrap_or(i32::MAX);
        let step = i64::try_from(stored.step).unwrap_or(i64::MAX);
        // SAFETY: each value has the size that the attribute requires, and lives through the call.
        unsafe {
            result::set_matrix_layout_attribute(
                made.0,
                Spacing::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                (&raw const count).cast(),
                size_of::<i32>(),
            )?;
            result::set_matrix_layout_attribute(
                made.0,
                Spacing::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                (&raw const step).cast(),
                size_of::<i64>(),
            )?;
        }
    }
    Ok(made)
}

/// Describes the operation: transpositions and the bias.
fn describe(product: &Product) -> Result<Owned<sys::cublasLtMatmulDesc_t>, CublasError> {
    use sys::cublasLtMatmulDescAttributes_t as Attribute;
    let Product { a, b, .. } = product;
    let description = Owned(
        result::create_matmul_desc(
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cudaDataType::CUDA_R_32F,
        )?,
        result::destroy_matmul_desc,
    );
    // SAFETY: each value has the size that the attribute requires, and lives through the call.
    let set = |attribute, value: *const c_void, bytes| unsafe {
        result::set_matmul_desc_attribute(description.0, attribute, value, bytes)
    };
    for (attribute, transposed) in [
        (Attribute::CUBLASLT_MATMUL_DESC_TRANSA, b.transposed),
        (Attribute::CUBLASLT_MATMUL_DESC_TRANSB, a.transposed),
    ] {
        let operation = i32::from(transposed);
        set(attribute, (&raw const operation).cast(), size_of::<i32>())?;
    }
    if let Some(bias) = product.bias {
        let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
        set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, (&raw const epilogue).cast(), size_of_val(&epilogue))?;
        set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, (&raw const bias).cast(), size_of::<u64>())?;
        let number = data_type(product.output);
        set(
            Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE,
            (&raw const number).cast(),
            size_of_val(&number),
        )?;
    }
    Ok(description)
}

/// The error of cuBLASLt as one phrase.
fn phrase(error: CublasError) -> String {
    match error.0 {
        sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED => {
            "cuBLASLt has no algorithm for these types, sizes and addresses".to_owned()
        }
        _ => format!("cuBLASLt reports {error}"),
    }
}

impl Multiplier {
    /// NVIDIA's recommendation for Hopper and newer.
    pub(super) const WORKSPACE_BYTES: usize = 32 << 20;

    /// Loads cuBLASLt; `workspace` is device memory of [`WORKSPACE_BYTES`](Self::WORKSPACE_BYTES) that nothing else
    /// uses.
    pub(super) fn open(workspace: u64) -> Result<Self, String> {
        // SAFETY: only tries to open the library; everything else panics without it.
        if !unsafe { sys::is_culib_present() } {
            return Err(
                "cuBLASLt (libcublasLt) is not on this machine; it comes with the CUDA toolkit".to_owned()
            );
        }
        let handle = result::create_handle().map_err(|error| format!("cuBLASLt does not start: {error}"))?;
        Ok(Self { handle, workspace, chosen: HashMap::new() })
    }

    /// Address of the workspace.
    pub(super) fn workspace(&self) -> u64 {
        self.workspace
    }

    /// Queues a product on the stream.
    ///
    /// # Safety
    /// All matrices are allocated with their sizes, and the stream outlives the call.
    pub(super) unsafe fn run(
        &mut self,
        product: &Product,
        stream: driver::sys::CUstream,
    ) -> Result<(), String> {
        // SAFETY: the caller's obligations are the same.
        unsafe { self.multiply(product, stream) }.map_err(|error| {
            let Product { batch, m, n, k, inputs, output, .. } = product;
            let sizes = format!("{m}, {n}, {k} ({batch} at once, {inputs:?} to {output:?})");
            format!("the product of {sizes} failed: {}", phrase(error))
        })
    }

    unsafe fn multiply(
        &mut self,
        product: &Product,
        stream: driver::sys::CUstream,
    ) -> Result<(), CublasError> {
        // cuBLASLt is column-major, so our row-major C = A B is its Cᵀ = Bᵀ Aᵀ on the same bytes: B comes first, and
        // the bias of our columns is that of its rows.
        let Product { m, n, k, batch, a, b, c, .. } = *product;
        let first = layout(product.inputs, &b, [k, n], batch)?;
        let second = layout(product.inputs, &a, [m, k], batch)?;
        let output = layout(product.output, &c, [m, n], batch)?;
        let description = describe(product)?;
        let key = (
            product.inputs,
            product.output,
            [batch, m, n, k],
            [b, a, c].map(|stored| [stored.row, if batch > 1 { stored.step } else { 0 }]),
            [a.transposed, b.transposed, product.bias.is_some(), product.beta == 0.0],
            [b, a, c].map(|stored| alignment(stored.address)),
        );
        let algorithm = match self.chosen.get(&key) {
            Some(algorithm) => *algorithm,
            None => {
                let found = self.choose(&description, [&first, &second, &output], key.5)?;
                self.chosen.insert(key, found);
                found
            }
        };
        // SAFETY: the caller guarantees that the matrices are allocated; descriptors and factors live through the call,
        // and work on one stream uses the workspace in turn.
        unsafe {
            result::matmul(
                self.handle,
                description.0,
                (&raw const product.alpha).cast(),
                (&raw const product.beta).cast(),
                b.address as *const c_void,
                first.0,
                a.address as *const c_void,
                second.0,
                c.address as *const c_void,
                output.0,
                c.address as *mut c_void,
                output.0,
                &raw const algorithm,
                self.workspace as *mut c_void,
                Self::WORKSPACE_BYTES,
                stream.cast(),
            )
        }
    }

    /// The best algorithm for a product with these alignments, by cuBLASLt's heuristic.
    fn choose(
        &self,
        description: &Owned<sys::cublasLtMatmulDesc_t>,
        [first, second, output]: [&Owned<sys::cublasLtMatrixLayout_t>; 3],
        [first_alignment, second_alignment, output_alignment]: [u32; 3],
    ) -> Result<sys::cublasLtMatmulAlgo_t, CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Wish;
        let preference = Owned(result::create_matmul_pref()?, result::destroy_matmul_pref);
        let prefer = |attribute, value: *const c_void, bytes| {
            // SAFETY: each value has the size that the attribute requires, and lives through the call.
            unsafe { result::set_matmul_pref_attribute(preference.0, attribute, value, bytes) }
        };
        let bytes = Self::WORKSPACE_BYTES;
        prefer(
            Wish::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            (&raw const bytes).cast(),
            size_of::<usize>(),
        )?;
        for (attribute, alignment) in [
            (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, first_alignment),
            (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, second_alignment),
            (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, output_alignment),
            (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, output_alignment),
        ] {
            prefer(attribute, (&raw const alignment).cast(), size_of::<u32>())?;
        }
        // SAFETY: the layouts match the product.
        let found = unsafe {
            result::get_matmul_algo_heuristic(
                self.handle,
                description.0,
                first.0,
                second.0,
                output.0,
                output.0,
                preference.0,
            )?
        };
        Ok(found.algo)
    }
}

impl Drop for Multiplier {
    fn drop(&mut self) {
        // SAFETY: created by create_handle, and this is the only handle. The caller owns the workspace.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}
