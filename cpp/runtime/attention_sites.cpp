#include "runtime/attention_sites.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <utility>

#include "base/aligned_buffer.h"
#include "base/checked.h"
#include "base/fail.h"

namespace kvik {

const char* attention_kind_name(AttentionKind kind) noexcept {
  switch (kind) {
    case AttentionKind::kSelf: return "self";
    case AttentionKind::kCross: return "cross";
    case AttentionKind::kSource: return "source";
  }
  return "";
}

}  // namespace kvik

namespace kvik::runtime {

namespace {

// As a session's intermediate values (ExecutorOptions::max_bytes).
constexpr std::int64_t kMostWeightBytes = std::int64_t{8} << 30;

std::string kinds_there_are(const std::map<AttentionKind, int>& counts) {
  std::string list;
  for (const auto& [kind, count] : counts) {
    list += (list.empty() ? "" : ", ") + std::string(attention_kind_name(kind)) + " (" +
            std::to_string(count) + (count == 1 ? " layer)" : " layers)");
  }
  return list;
}

bool same_group(const AttentionSite& a, const AttentionSite& b) {
  return a.kind == b.kind && a.dims == b.dims && a.queries.symbol == b.queries.symbol &&
         a.keys.symbol == b.keys.symbol;
}

std::int64_t weight_bytes_of(const AttentionSite& site) {
  const auto elements = checked_elements(site.dims);
  const auto bytes = elements ? checked_bytes(*elements, DType::kF32) : std::nullopt;
  return bytes.value_or(INT64_MAX);
}

}  // namespace

void choose_attention(std::span<AttentionSite> sites, const AttentionChoice& choice) {
  if (sites.empty()) {
    fail(ErrorCode::kUnsupported,
         "the model has no attention: nothing in its graph is a softmax over keys that weighs "
         "values");
  }
  std::map<AttentionKind, int> counts;
  for (AttentionSite& site : sites) site.layer = counts[site.kind]++;
  if (choice.kind && !counts.contains(*choice.kind)) {
    fail_argument("the model has no attention of the kind '" +
                  std::string(attention_kind_name(*choice.kind)) + "'; it has " +
                  kinds_there_are(counts));
  }
  int most = 0;
  for (const auto& [kind, count] : counts) {
    if (!choice.kind || kind == *choice.kind) most = std::max(most, count);
  }
  for (const int layer : choice.layers) {
    if (layer >= 0 && layer < most) continue;
    fail_argument(
        "layer " + std::to_string(layer) + " of the attention; the model has " +
        (most == 1 ? "one, layer 0" : std::to_string(most) + ", 0 to " + std::to_string(most - 1)));
  }
  for (AttentionSite& site : sites) {
    const auto& layers = choice.layers;
    const bool kind = !choice.kind || site.kind == *choice.kind;
    const bool layer =
        layers.empty() || std::find(layers.begin(), layers.end(), site.layer) != layers.end();
    site.wanted = kind && layer;
  }
}

std::vector<AttentionWeights> make_room(std::span<AttentionSite> sites) {
  std::int64_t total = 0;
  std::vector<AttentionSite*> wanted;
  for (AttentionSite& site : sites) {
    if (!site.wanted) continue;
    wanted.push_back(&site);
    if (!checked_add(total, weight_bytes_of(site), &total)) total = INT64_MAX;
  }
  if (total > kMostWeightBytes) {
    fail(ErrorCode::kOutOfMemory, "the attention weights would take " +
                                      std::to_string(total >> 20) +
                                      " MiB; ask for fewer layers, or a shorter text");
  }
  std::stable_sort(wanted.begin(), wanted.end(),
                   [](const auto* a, const auto* b) { return a->kind < b->kind; });
  std::vector<AttentionWeights> groups;
  for (std::size_t begin = 0, end = 0; begin < wanted.size(); begin = end) {
    const AttentionSite& first = *wanted[begin];
    while (end < wanted.size() && same_group(*wanted[end], first)) ++end;
    const std::int64_t bytes = weight_bytes_of(first);
    const auto count = static_cast<std::int64_t>(end - begin);
    const auto memory = std::make_shared<AlignedBuffer>(static_cast<std::size_t>(bytes * count));
    if (memory->size() > 0) std::memset(memory->data(), 0, memory->size());
    AttentionWeights group{.kind = first.kind, .queries = first.queries, .keys = first.keys};
    group.weights = {.dtype = DType::kF32,
                     .dims = first.dims,
                     .data = std::shared_ptr<void>(memory, memory->data())};
    group.weights.dims.insert(group.weights.dims.begin(), count);
    for (std::int64_t i = 0; i < count; ++i) {
      AttentionSite& site = *wanted[begin + static_cast<std::size_t>(i)];
      group.layers.push_back(site.layer);
      group.names.push_back(site.name);
      site.weights = memory->as<float>() + i * (bytes / static_cast<std::int64_t>(sizeof(float)));
    }
    groups.push_back(std::move(group));
  }
  return groups;
}

std::vector<AttentionSite> row_sites(const graph::RowGraph& rows, AttentionKind self) {
  std::vector<AttentionSite> sites;
  for (const graph::RowAttention& layer : rows.attention) {
    AttentionSite site;
    const bool cross = layer.mixing == graph::Mixing::kSource;
    site.kind = cross ? AttentionKind::kCross : self;
    site.name = rows.graph.nodes[static_cast<std::size_t>(layer.node)].name;
    sites.push_back(std::move(site));
  }
  return sites;
}

void measure_sites(std::span<AttentionSite> sites, const graph::RowGraph& rows, std::int64_t tokens,
                   std::int64_t source_tokens) {
  for (std::size_t i = 0; i < sites.size(); ++i) {
    const bool cross = sites[i].kind == AttentionKind::kCross;
    sites[i].dims = {rows.attention[i].heads, tokens, cross ? source_tokens : tokens};
  }
}

std::vector<ops::AttentionRecord> records_of(std::span<const AttentionSite> sites) {
  std::vector<ops::AttentionRecord> records;
  for (const AttentionSite& site : sites) {
    records.push_back({.weights = site.weights, .queries = site.dims[1], .keys = site.dims[2]});
  }
  return records;
}

}  // namespace kvik::runtime
