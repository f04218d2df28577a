#include "onnx/attribute_types.h"

#include <algorithm>
#include <iterator>

namespace kvik::onnx {

namespace {

// Sorted by name, from the schemas of all opsets. Left out are the names that differ between
// operators or opsets: 'p', 'seed', 'to', 'value'.
constexpr std::string_view kIntNames[] = {"align_corners",
                                          "allowzero",
                                          "antialias",
                                          "axis",
                                          "batch_axis",
                                          "batch_dims",
                                          "block_size",
                                          "blocksize",
                                          "broadcast",
                                          "ceil_mode",
                                          "center_point_box",
                                          "chunk_size",
                                          "count_include_pad",
                                          "detect_negative",
                                          "detect_positive",
                                          "dtype",
                                          "end",
                                          "exclude_outside",
                                          "exclusive",
                                          "fmod",
                                          "group",
                                          "hidden_size",
                                          "ignore_index",
                                          "input_forget",
                                          "interleaved",
                                          "inverse",
                                          "is_case_sensitive",
                                          "is_causal",
                                          "is_test",
                                          "k",
                                          "keepdims",
                                          "kv_num_heads",
                                          "largest",
                                          "layout",
                                          "left_window_size",
                                          "linear_before_reset",
                                          "max_gram_length",
                                          "max_skip_count",
                                          "maxsplit",
                                          "min_gram_length",
                                          "new_axis",
                                          "noop_with_empty_axes",
                                          "num_groups",
                                          "num_heads",
                                          "num_outputs",
                                          "num_scan_inputs",
                                          "offset_group",
                                          "onesided",
                                          "output_datatype",
                                          "output_dtype",
                                          "output_height",
                                          "output_sequence",
                                          "output_width",
                                          "periodic",
                                          "precision",
                                          "q_num_heads",
                                          "qk_matmul_output_mode",
                                          "reverse",
                                          "right_window_size",
                                          "rotary_embedding_dim",
                                          "sample_size",
                                          "sampling_ratio",
                                          "saturate",
                                          "select_last_index",
                                          "size",
                                          "softmax_precision",
                                          "sorted",
                                          "spatial",
                                          "start",
                                          "stash_type",
                                          "storage_order",
                                          "time_axis",
                                          "training_mode",
                                          "transA",
                                          "transB",
                                          "upper",
                                          "value_int"};
constexpr std::string_view kFloatNames[] = {"alpha",
                                            "beta",
                                            "bias",
                                            "clip",
                                            "cubic_coeff_a",
                                            "epsilon",
                                            "extrapolation_value",
                                            "gamma",
                                            "height_scale",
                                            "high",
                                            "lambd",
                                            "low",
                                            "max",
                                            "mean",
                                            "min",
                                            "momentum",
                                            "ratio",
                                            "scale",
                                            "softcap",
                                            "spatial_scale",
                                            "value_float",
                                            "width_scale"};
constexpr std::string_view kStringNames[] = {"activation",
                                             "approximate",
                                             "auto_pad",
                                             "case_change_action",
                                             "coordinate_transformation_mode",
                                             "delimiter",
                                             "direction",
                                             "equation",
                                             "keep_aspect_ratio_policy",
                                             "locale",
                                             "mode",
                                             "nearest_mode",
                                             "padding_mode",
                                             "pattern",
                                             "pixel_format",
                                             "reduction",
                                             "round_mode",
                                             "update_rule",
                                             "value_string"};
constexpr std::string_view kIntsNames[] = {"axes",
                                           "consumed_inputs",
                                           "dilations",
                                           "directions",
                                           "ends",
                                           "kernel_shape",
                                           "ngram_counts",
                                           "ngram_indexes",
                                           "output_padding",
                                           "output_shape",
                                           "paddings",
                                           "pads",
                                           "perm",
                                           "pool_int64s",
                                           "pooled_shape",
                                           "scan_input_axes",
                                           "scan_input_directions",
                                           "scan_output_axes",
                                           "scan_output_directions",
                                           "shape",
                                           "split",
                                           "starts",
                                           "strides",
                                           "value_ints"};
constexpr std::string_view kFloatsNames[] = {"activation_alpha", "activation_beta", "scales",
                                             "value_floats", "weights"};
constexpr std::string_view kStringsNames[] = {"activations", "pool_strings", "stopwords",
                                              "value_strings"};
constexpr std::string_view kGraphNames[] = {"body", "else_branch", "then_branch"};

template <std::size_t size>
bool contains(const std::string_view (&names)[size], std::string_view name) {
  return std::binary_search(std::begin(names), std::end(names), name);
}

}  // namespace

AttributeType expected_attribute_type(std::string_view name) {
  if (contains(kIntNames, name)) return AttributeType::kInt;
  if (contains(kFloatNames, name)) return AttributeType::kFloat;
  if (contains(kStringNames, name)) return AttributeType::kString;
  if (contains(kIntsNames, name)) return AttributeType::kInts;
  if (contains(kFloatsNames, name)) return AttributeType::kFloats;
  if (contains(kStringsNames, name)) return AttributeType::kStrings;
  if (contains(kGraphNames, name)) return AttributeType::kGraph;
  return AttributeType::kUndefined;
}

}  // namespace kvik::onnx
