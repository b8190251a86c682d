"""Where other projects document their names: PyTorch and einops.

Nothing is guessed: a name that is not listed here has no link, because a wrong link is worse than
none. (PyTorch leaves some public names without documentation, `torch.relu` for one, and documents
others under the place where they are defined, `torch.nn.Flatten` for one.)
"""

from __future__ import annotations

from collections.abc import Iterator

_TORCH = "https://docs.pytorch.org/docs/stable/"
_EINOPS = "https://einops.rocks/"


def find(qualified: str) -> str | None:
    """The address of the documentation of a name, or None where it is not surely known.

    Args:
        qualified: The name as one could import it: `"torch.nn.Linear"`, `"einops.rearrange"`,
            also a module, `"torch.nn"`.
    """
    return _PAGES.get(qualified)


def is_module(qualified: str) -> bool:
    """Whether a name that `find` knows is a module."""
    return qualified in _MODULES or qualified == "einops"


def names() -> list[str]:
    """Every name that `find` knows."""
    return list(_PAGES)


# Documented on a page of its own, `generated/<qualified name>.html`.
_GENERATED = {
    "torch": """
        abs absolute acos acosh add addbmm addcdiv addcmul addmm addmv addr adjoint all
        allclose amax amin aminmax angle any arange arccos arccosh arcsin arcsinh arctan
        arctan2 arctanh are_deterministic_algorithms_enabled argmax argmin argsort argwhere
        as_strided as_tensor asarray asin asinh atan atan2 atanh atleast_1d atleast_2d
        atleast_3d baddbmm bartlett_window bernoulli bincount bitwise_and bitwise_left_shift
        bitwise_not bitwise_or bitwise_right_shift bitwise_xor blackman_window block_diag
        bmm broadcast_shapes broadcast_tensors broadcast_to bucketize can_cast
        cartesian_prod cat cdist ceil chain_matmul cholesky cholesky_inverse cholesky_solve
        chunk clamp clip clone column_stack combinations compile compiled_with_cxx11_abi
        complex concat concatenate cond conj conj_physical copysign corrcoef cos cosh
        count_nonzero cov cross cummax cummin cumprod cumsum cumulative_trapezoid deg2rad
        dequantize det diag diag_embed diagflat diagonal diagonal_scatter diff digamma dist
        div divide dot dsplit dstack einsum empty empty_like empty_strided enable_grad eq
        equal erf erfc erfinv exp exp2 expm1 eye fake_quantize_per_channel_affine
        fake_quantize_per_tensor_affine fix flatten flip fliplr flipud float_power floor
        floor_divide fmax fmin fmod frac frexp from_dlpack from_file from_numpy frombuffer
        full full_like gather gcd ge Generator geqrf ger get_default_device
        get_default_dtype get_deterministic_debug_mode get_device_module
        get_float32_matmul_precision get_num_interop_threads get_num_threads get_rng_state
        gradient greater greater_equal gt hamming_window hann_window heaviside histc
        histogram histogramdd hsplit hstack hypot i0 igamma igammac imag index_add
        index_copy index_reduce index_select initial_seed inner inverse is_complex is_conj
        is_deterministic_algorithms_warn_only_enabled is_floating_point is_grad_enabled
        is_inference_mode_enabled is_nonzero is_storage is_tensor is_warn_always_enabled
        isclose isfinite isin isinf isnan isneginf isposinf isreal istft kaiser_window kron
        kthvalue lcm ldexp le lerp less less_equal lgamma linspace load lobpcg log log10
        log1p log2 logaddexp logaddexp2 logcumsumexp logdet logical_and logical_not
        logical_or logical_xor logit logspace logsumexp lt lu lu_solve lu_unpack manual_seed
        masked_select matmul matrix_exp matrix_power max maximum mean median meshgrid min
        minimum mm mode moveaxis movedim msort mul multinomial multiply mv mvlgamma
        nan_to_num nanmean nanmedian nanquantile nansum narrow narrow_copy ne neg negative
        nextafter no_grad nonzero norm normal not_equal numel ones ones_like orgqr ormqr
        outer pca_lowrank permute pinverse poisson polar polygamma positive pow prod
        promote_types qr quantile quantize_per_channel quantize_per_tensor
        quantized_batch_norm quantized_max_pool1d quantized_max_pool2d rad2deg rand
        rand_like randint randint_like randn randn_like randperm range ravel real reciprocal
        remainder renorm repeat_interleave reshape resolve_conj resolve_neg result_type roll
        rot90 round row_stack rsqrt save scatter scatter_add scatter_reduce searchsorted
        seed select select_scatter set_default_device set_default_dtype
        set_default_tensor_type set_deterministic_debug_mode set_float32_matmul_precision
        set_flush_denormal set_num_interop_threads set_num_threads set_printoptions
        set_rng_state set_warn_always sgn sigmoid sign signbit sin sinc sinh slice_scatter
        slogdet softmax sort sparse_bsc_tensor sparse_bsr_tensor sparse_coo_tensor
        sparse_csc_tensor sparse_csr_tensor split sqrt square squeeze stack std std_mean
        stft sub subtract sum svd svd_lowrank swapaxes swapdims sym_float sym_int sym_ite
        sym_max sym_min sym_not sym_sum t take take_along_dim tan tanh tensor tensor_split
        tensordot tile topk trace transpose trapezoid trapz triangular_solve tril
        tril_indices triu triu_indices true_divide trunc unbind unflatten unique
        unique_consecutive unravel_index unsqueeze use_deterministic_algorithms vander var
        var_mean vdot view_as_complex view_as_real vmap vsplit vstack where xlogy zeros
        zeros_like
    """,
    "torch.nn": """
        AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveLogSoftmaxWithLoss
        AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d AlphaDropout AvgPool1d
        AvgPool2d AvgPool3d BatchNorm1d BatchNorm2d BatchNorm3d BCELoss BCEWithLogitsLoss
        Bilinear CELU ChannelShuffle CircularPad1d CircularPad2d CircularPad3d ConstantPad1d
        ConstantPad2d ConstantPad3d Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d
        ConvTranspose3d CosineEmbeddingLoss CosineSimilarity CrossEntropyLoss CTCLoss
        DataParallel Dropout Dropout1d Dropout2d Dropout3d ELU Embedding EmbeddingBag
        FeatureAlphaDropout Fold FractionalMaxPool2d FractionalMaxPool3d GaussianNLLLoss
        GELU GLU GroupNorm GRU GRUCell Hardshrink Hardsigmoid Hardswish Hardtanh
        HingeEmbeddingLoss HuberLoss Identity InstanceNorm1d InstanceNorm2d InstanceNorm3d
        KLDivLoss L1Loss LayerNorm LazyBatchNorm1d LazyBatchNorm2d LazyBatchNorm3d
        LazyConv1d LazyConv2d LazyConv3d LazyConvTranspose1d LazyConvTranspose2d
        LazyConvTranspose3d LazyInstanceNorm1d LazyInstanceNorm2d LazyInstanceNorm3d
        LazyLinear LeakyReLU Linear LocalResponseNorm LogSigmoid LogSoftmax LPPool1d
        LPPool2d LPPool3d LSTM LSTMCell MarginRankingLoss MaxPool1d MaxPool2d MaxPool3d
        MaxUnpool1d MaxUnpool2d MaxUnpool3d Mish Module ModuleDict ModuleList MSELoss
        MultiheadAttention MultiLabelMarginLoss MultiLabelSoftMarginLoss MultiMarginLoss
        NLLLoss PairwiseDistance ParameterDict ParameterList PixelShuffle PixelUnshuffle
        PoissonNLLLoss PReLU ReflectionPad1d ReflectionPad2d ReflectionPad3d ReLU ReLU6
        ReplicationPad1d ReplicationPad2d ReplicationPad3d RMSNorm RNN RNNBase RNNCell RReLU
        SELU Sequential Sigmoid SiLU SmoothL1Loss SoftMarginLoss Softmax Softmax2d Softmin
        Softplus Softshrink Softsign SyncBatchNorm Tanh Tanhshrink Threshold Transformer
        TransformerDecoder TransformerDecoderLayer TransformerEncoder
        TransformerEncoderLayer TripletMarginLoss TripletMarginWithDistanceLoss Unfold
        Upsample UpsamplingBilinear2d UpsamplingNearest2d ZeroPad1d ZeroPad2d ZeroPad3d
    """,
    "torch.nn.functional": """
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
        adaptive_max_pool2d adaptive_max_pool3d affine_grid alpha_dropout avg_pool1d
        avg_pool2d avg_pool3d batch_norm bilinear binary_cross_entropy
        binary_cross_entropy_with_logits celu conv1d conv2d conv3d conv_transpose1d
        conv_transpose2d conv_transpose3d cosine_embedding_loss cosine_similarity
        cross_entropy ctc_loss dropout dropout1d dropout2d dropout3d elu elu_ embedding
        embedding_bag feature_alpha_dropout fold fractional_max_pool2d fractional_max_pool3d
        gaussian_nll_loss gelu glu grid_sample group_norm gumbel_softmax hardshrink
        hardsigmoid hardswish hardtanh hardtanh_ hinge_embedding_loss huber_loss
        instance_norm interpolate kl_div l1_loss layer_norm leaky_relu leaky_relu_ linear
        local_response_norm log_softmax logsigmoid lp_pool1d lp_pool2d lp_pool3d
        margin_ranking_loss max_pool1d max_pool2d max_pool3d max_unpool1d max_unpool2d
        max_unpool3d mish mse_loss multi_margin_loss multilabel_margin_loss
        multilabel_soft_margin_loss nll_loss normalize one_hot pad pairwise_distance pdist
        pixel_shuffle pixel_unshuffle poisson_nll_loss prelu relu relu6 relu_ rms_norm rrelu
        rrelu_ scaled_dot_product_attention selu sigmoid silu smooth_l1_loss
        soft_margin_loss softmax softmin softplus softshrink softsign tanh tanhshrink
        threshold threshold_ triplet_margin_loss triplet_margin_with_distance_loss unfold
        upsample upsample_bilinear upsample_nearest
    """,
    "torch.nn.utils": """
        clip_grad_norm_ clip_grad_value_ clip_grads_with_norm_ get_total_norm
        parameters_to_vector remove_spectral_norm remove_weight_norm skip_init spectral_norm
        vector_to_parameters weight_norm
    """,
    "torch.nn.utils.parametrizations": "orthogonal spectral_norm weight_norm",
    "torch.nn.utils.parametrize": """
        cached is_parametrized register_parametrization remove_parametrizations
    """,
    "torch.nn.utils.rnn": """
        pack_padded_sequence pack_sequence PackedSequence pad_packed_sequence pad_sequence
        unpack_sequence unpad_sequence
    """,
    "torch.nn.parallel": "DistributedDataParallel",
    "torch.optim": """
        Adadelta Adafactor Adagrad Adam Adamax AdamW ASGD LBFGS Muon NAdam RAdam RMSprop
        Rprop SGD SparseAdam
    """,
    "torch.optim.lr_scheduler": """
        ChainedScheduler ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts CyclicLR
        ExponentialLR LambdaLR LinearLR LRScheduler MultiplicativeLR MultiStepLR OneCycleLR
        PolynomialLR ReduceLROnPlateau SequentialLR StepLR
    """,
    "torch.linalg": """
        cholesky cholesky_ex cond cross det diagonal eig eigh eigvals eigvalsh
        householder_product inv inv_ex ldl_factor ldl_factor_ex ldl_solve lstsq lu lu_factor
        lu_factor_ex lu_solve matmul matrix_exp matrix_norm matrix_power matrix_rank
        multi_dot norm pinv qr slogdet solve solve_ex solve_triangular svd svdvals tensorinv
        tensorsolve vander vecdot vector_norm
    """,
    "torch.fft": """
        fft fft2 fftfreq fftn fftshift hfft hfft2 hfftn ifft ifft2 ifftn ifftshift ihfft
        ihfft2 ihfftn irfft irfft2 irfftn rfft rfft2 rfftfreq rfftn
    """,
    "torch.autograd": "backward grad",
    "torch.autograd.functional": "hessian hvp jacobian jvp vhp vjp",
    "torch.func": """
        functional_call functionalize grad grad_and_value hessian jacfwd jacrev jvp
        linearize stack_module_state vjp vmap
    """,
    "torch.nn.attention": "sdpa_kernel SDPBackend",
    "torch.cuda": """
        current_device device device_count get_device_capability get_device_name
        get_device_properties is_available is_bf16_supported manual_seed manual_seed_all
        set_device synchronize
    """,
}

# Documented together on one page: module -> page, names.
_TOGETHER = {
    "torch.nn.init": (
        "nn.init",
        """
        calculate_gain constant_ dirac_ eye_ kaiming_normal_ kaiming_uniform_ normal_ ones_
        orthogonal_ sparse_ trunc_normal_ uniform_ xavier_normal_ xavier_uniform_ zeros_
        """,
    ),
    "torch.testing": (
        "testing",
        """
        assert_allclose assert_close make_tensor
        """,
    ),
    "torch.special": (
        "special",
        """
        airy_ai bessel_j0 bessel_j1 digamma entr erf erfc erfcx erfinv exp2 expit expm1
        gammainc gammaincc gammaln i0 i0e i1 i1e log1p log_ndtr log_softmax logit logsumexp
        multigammaln ndtr ndtri polygamma psi round sinc softmax xlog1py xlogy zeta
        """,
    ),
    "torch.utils.data": (
        "data",
        """
        BatchSampler ChainDataset ConcatDataset DataLoader Dataset default_collate
        default_convert IterableDataset random_split RandomSampler Sampler SequentialSampler
        StackDataset Subset SubsetRandomSampler TensorDataset WeightedRandomSampler
        """,
    ),
    "torch.utils.checkpoint": (
        "checkpoint",
        """
        checkpoint checkpoint_sequential
        """,
    ),
}

# `torch.distributions.X` is documented under the module that defines it.
_DISTRIBUTIONS = {
    "distribution": "Distribution",
    "bernoulli": "Bernoulli",
    "beta": "Beta",
    "binomial": "Binomial",
    "categorical": "Categorical",
    "cauchy": "Cauchy",
    "dirichlet": "Dirichlet",
    "exponential": "Exponential",
    "gamma": "Gamma",
    "independent": "Independent",
    "kl": "kl_divergence",
    "laplace": "Laplace",
    "log_normal": "LogNormal",
    "mixture_same_family": "MixtureSameFamily",
    "multivariate_normal": "MultivariateNormal",
    "normal": "Normal",
    "one_hot_categorical": "OneHotCategorical",
    "poisson": "Poisson",
    "uniform": "Uniform",
    "von_mises": "VonMises",
}

_DTYPES = """
    float32 float float64 double float16 half bfloat16 complex32 chalf complex64 cfloat complex128
    cdouble uint8 int8 uint16 int16 short uint32 int32 int uint64 int64 long bool
"""

# What follows none of the rules: name -> page.
_SINGLE = {
    "Size": "size.html#torch.Size",
    "Tensor": "tensors.html",
    "amp.autocast": "amp.html#torch.autocast",
    "amp.GradScaler": "amp.html#gradient-scaling",
    "autocast": "amp.html#torch.autocast",
    "autograd.Function": "autograd.html#torch.autograd.Function",
    "autograd.gradcheck": "generated/torch.autograd.gradcheck.gradcheck.html",
    "autograd.gradgradcheck": "generated/torch.autograd.gradcheck.gradgradcheck.html",
    "autograd.set_detect_anomaly": "autograd.html#torch.autograd.set_detect_anomaly",
    "device": "tensor_attributes.html#torch.device",
    "dtype": "tensor_attributes.html#torch.dtype",
    "finfo": "type_info.html#torch.finfo",
    "iinfo": "type_info.html#torch.iinfo",
    "inference_mode": "generated/torch.autograd.grad_mode.inference_mode.html",
    "layout": "tensor_attributes.html#torch.layout",
    "memory_format": "tensor_attributes.html#torch.memory_format",
    "nn.Buffer": "generated/torch.nn.parameter.Buffer.html",
    "nn.Flatten": "generated/torch.nn.modules.flatten.Flatten.html",
    "nn.Parameter": "generated/torch.nn.parameter.Parameter.html",
    "nn.Unflatten": "generated/torch.nn.modules.flatten.Unflatten.html",
    "nn.parameter.Buffer": "generated/torch.nn.parameter.Buffer.html",
    "nn.parameter.Parameter": "generated/torch.nn.parameter.Parameter.html",
    "optim.Optimizer": "optim.html#torch.optim.Optimizer",
    "set_grad_enabled": "generated/torch.autograd.grad_mode.set_grad_enabled.html",
}

_MODULES = {
    "torch": "torch",
    "torch.amp": "amp",
    "torch.autograd": "autograd",
    "torch.cuda": "cuda",
    "torch.distributions": "distributions",
    "torch.fft": "fft",
    "torch.func": "func",
    "torch.linalg": "linalg",
    "torch.nn": "nn",
    "torch.nn.attention": "nn.attention",
    "torch.nn.functional": "nn.functional",
    "torch.nn.init": "nn.init",
    "torch.optim": "optim",
    "torch.special": "special",
    "torch.testing": "testing",
    "torch.utils.checkpoint": "checkpoint",
    "torch.utils.data": "data",
}

_OF_EINOPS = {
    "einops": "",
    "einops.asnumpy": "api/asnumpy/",
    "einops.einsum": "api/einsum/",
    "einops.layers.torch.EinMix": "3-einmix-layer/",
    "einops.pack": "api/pack_unpack/",
    "einops.parse_shape": "api/parse_shape/",
    "einops.rearrange": "api/rearrange/",
    "einops.reduce": "api/reduce/",
    "einops.repeat": "api/repeat/",
    "einops.unpack": "api/pack_unpack/",
}


def _of_torch() -> Iterator[tuple[str, str]]:
    for module, listed in _GENERATED.items():
        for name in listed.split():
            yield f"{module}.{name}", f"generated/{module}.{name}.html"
    for module, (page, listed) in _TOGETHER.items():
        for name in listed.split():
            yield f"{module}.{name}", f"{page}.html#{module}.{name}"
    for module, name in _DISTRIBUTIONS.items():
        anchor = f"torch.distributions.{module}.{name}"
        yield f"torch.distributions.{name}", f"distributions.html#{anchor}"
    for name in _DTYPES.split():
        yield f"torch.{name}", "tensor_attributes.html#torch.dtype"
    for name, page in _SINGLE.items():
        yield f"torch.{name}", page
    for module, page in _MODULES.items():
        yield module, f"{page}.html"


_PAGES = {name: _TORCH + page for name, page in _of_torch()}
_PAGES |= {name: _EINOPS + page for name, page in _OF_EINOPS.items()}
