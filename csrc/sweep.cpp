#include "sweep.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace nca {

namespace {

constexpr int kBandCells = 160; // a last tile that is part empty costs less than two in a hundred
constexpr int kBandRows = 64;   // where next to nothing fires
constexpr int kBlockTiles = 8;  // cells whose hidden layer exists at one time: it stays in the cache

FireRow fire_row(const Fire& fire, uint64_t threshold, size_t member) {
    if (fire.masks)
        return {};
    return {{static_cast<uint32_t>(fire.seed), static_cast<uint32_t>(fire.seed >> 32)},
            0,
            fire.slices[member],
            static_cast<uint32_t>(fire.level) << 16 | fire.samples[member] << 20,
            threshold};
}

} // namespace

Image image_of(const Rule::Packed& rule, float* state, size_t count, int height, int width, const Fire& fire,
               size_t member) {
    const size_t cells = static_cast<size_t>(height) * width;
    return {state + member * cells * rule.channels,
            height,
            width,
            static_cast<size_t>(width) * rule.channels,
            fire.masks ? fire.masks + member * cells : nullptr,
            count * cells,
            fire_row(fire, rule.fire_threshold, member)};
}

void check_size(const Rule::Packed& rule, int height, int width) {
    if (rule.padding == Padding::reflect && (height <= rule.radius || width <= rule.radius))
        throw std::invalid_argument("state has an image of " + std::to_string(height) + " x " +
                                    std::to_string(width) + "; reflect padding with a kernel of " +
                                    std::to_string(2 * rule.radius + 1) + " needs at least " +
                                    std::to_string(rule.radius + 1) + " rows and columns");
}

void fire_masks(uint8_t* masks, size_t count, int height, int width, int steps, double fire_rate,
                const Fire& fire) {
    const Kernels& kernels = active_kernels();
    std::vector<uint8_t> mask(round_up(width, kFireBlock));
    for (int step = 0; step < steps; ++step)
        for (size_t member = 0; member < count; ++member) {
            FireRow row = fire_row(fire, fire_threshold(fire_rate), member);
            row.word3 |= static_cast<uint32_t>(step);
            for (int y = 0; y < height; ++y, masks += width) {
                row.y = static_cast<uint32_t>(y);
                kernels.fire(row, width, mask.data());
                std::copy_n(mask.data(), width, masks);
            }
        }
}

Sweep::Sweep(const Rule::Packed& rule, int width)
    : rule_(rule), kernels_(*rule.kernels), taps_side_(2 * rule.radius + 1), taps_(taps_side_ * taps_side_),
      block_(kBlockTiles * kernels_.cells), mask_(round_up(width, kFireBlock)),
      columns_(static_cast<size_t>(kBandCells) + width), neighbours_(static_cast<size_t>(taps_) * block_),
      perceived_rows_(block_), hidden_rows_(block_),
      hidden_(static_cast<size_t>(block_) * rule.fc0.panels().outputs),
      changes_((columns_.size() + kernels_.cells) * rule.fc1.panels().outputs),
      kept_(static_cast<size_t>(rule.radius) * width * rule.channels), zeros_(rule.channels),
      perceived_stride_(round_up(2 * rule.channels, kernels_.width)) {
    perceived_ = Buffer(static_cast<size_t>(block_) * perceived_stride_);
    band_.reserve(kBandRows);
    for (int i = 0; i < block_; ++i) {
        perceived_rows_[i] = perceived_.data() + static_cast<size_t>(i) * perceived_stride_;
        hidden_rows_[i] = hidden_.data() + static_cast<size_t>(i) * rule.fc0.panels().outputs;
    }
    for (int tap = 0; tap < taps_; ++tap)
        perceive_.push_back({neighbours_.data() + static_cast<size_t>(tap) * block_, rule.channels});
    fc0_ = {perceive_[taps_ / 2], {perceived_rows_.data(), 2 * rule.channels}};
    fc1_ = {hidden_rows_.data(), rule.hidden};
}

void Sweep::step(const Image& image, int first, int last, int step, const Edges& edges) {
    start(image, first, last, edges, true);
    for (int y = first; y < last;) {
        y = fill_band(y, step);
        for (int begin = 0; begin < cells_; begin += block_)
            compute(begin, std::min(begin + block_, cells_));
        keep_last_rows();
        add_changes();
    }
}

void Sweep::start(const Image& image, int first, int last, const Edges& edges, bool in_place) {
    image_ = &image;
    edges_ = edges;
    first_ = first;
    last_ = last;
    in_place_ = in_place;
}

int Sweep::fill_band(int y, int step) {
    band_.clear();
    cells_ = 0;
    band_first_ = y;
    while (y < last_ && cells_ < kBandCells && static_cast<int>(band_.size()) < kBandRows)
        list_row(y++, step);
    return band_last_ = y;
}

// Appends the columns of the cells that fire in a row.
void Sweep::list_row(int y, int step) {
    const Image& image = *image_;
    const uint8_t* mask = mask_.data();
    if (image.masks) {
        mask = image.mask(step, y);
    } else {
        FireRow row = image.fire;
        row.y = static_cast<uint32_t>(y);
        row.word3 |= static_cast<uint32_t>(step);
        kernels_.fire(row, image.width, mask_.data());
    }
    int* columns = columns_.data() + cells_;
    int count = 0;
    for (int x = 0; x < image.width; ++x) {
        columns[count] = x;
        count += mask[x];
    }
    cells_ += count;
    band_.push_back({y, cells_});
}

// Where the values that row y had before this step stand.
const float* Sweep::old_row(int y) const {
    const size_t size = image_->row_floats;
    if (y < first_)
        return edges_.above + (y - first_ + rule_.radius) * size;
    if (y >= last_)
        return edges_.below + (y - last_) * size;
    if (y < band_first_ && in_place_)
        return kept_.data() + (y % rule_.radius) * size;
    return image_->row(y);
}

// A position inside the image, or -1 where there are zeros.
int Sweep::padded(int position, int size) const {
    if (position >= 0 && position < size)
        return position;
    if (rule_.padding == Padding::zero)
        return -1;
    return position < 0 ? -position : 2 * (size - 1) - position;
}

// Points at the neighbours of cells begin .. end - 1; the cells that fill up the last tile repeat the last
// one.
void Sweep::point_at_neighbours(int begin, int end, int padded_end) {
    const int radius = rule_.radius, width = image_->width;
    const std::ptrdiff_t channels = rule_.channels;
    const float* rows[16];
    auto row = std::upper_bound(band_.begin(), band_.end(), begin,
                                [](int i, const BandRow& r) { return i < r.end; });
    for (int i = begin; i < end; ++row) {
        if (i >= row->end)
            continue;
        for (int dy = 0; dy < taps_side_; ++dy) {
            const int y = padded(row->y + dy - radius, image_->height);
            rows[dy] = y < 0 ? nullptr : old_row(y);
        }
        for (const int row_end = std::min(row->end, end); i < row_end; ++i) {
            const int x = columns_[i];
            const bool inside = x >= radius && x + radius < width;
            const float** to = neighbours_.data() + (i - begin);
            for (int dy = 0; dy < taps_side_; ++dy)
                for (int dx = 0; dx < taps_side_; ++dx, to += block_) {
                    const int column = inside ? x + dx - radius : padded(x + dx - radius, width);
                    *to = rows[dy] && column >= 0 ? rows[dy] + column * channels : zeros_.data();
                }
        }
    }
    for (int tap = 0; tap < taps_; ++tap) {
        const float** to = neighbours_.data() + static_cast<size_t>(tap) * block_;
        for (int i = end; i < padded_end; ++i)
            to[i - begin] = to[end - 1 - begin];
    }
}

// What the band's cells begin .. end - 1 perceive, and their hidden layer; at most a block.
int Sweep::hide(int begin, int end) {
    const int tiles = (end - begin + kernels_.cells - 1) / kernels_.cells;
    point_at_neighbours(begin, end, begin + tiles * kernels_.cells);
    if (rule_.perception == Perception::sobel)
        kernels_.sobel(neighbours_.data(), block_, end - begin, rule_.channels, perceived_.data(),
                       perceived_stride_);
    else
        kernels_.product(perceive_.data(), taps_, tiles, rule_.perceive.panels(), false, perceived_.data());
    kernels_.product(fc0_.data(), 2, tiles, rule_.fc0.panels(), true, hidden_.data());
    return tiles;
}

// The changes of the band's cells begin .. end - 1, at most a block.
void Sweep::compute(int begin, int end) {
    const int tiles = hide(begin, end);
    const Panels& fc1 = rule_.fc1.panels();
    kernels_.product(&fc1_, 1, tiles, fc1, false, changes_.data() + static_cast<size_t>(begin) * fc1.outputs);
}

// Keeps the old values of the rows that the next band looks back at.
void Sweep::keep_last_rows() {
    for (int y = std::max(band_first_, band_last_ - rule_.radius); y < band_last_; ++y)
        std::copy_n(image_->row(y), image_->row_floats,
                    kept_.data() + (y % rule_.radius) * image_->row_floats);
}

void Sweep::add_changes() {
    const std::ptrdiff_t channels = rule_.channels;
    const float* change = changes_.data();
    int i = 0;
    for (const BandRow& band_row : band_) {
        float* row = image_->row(band_row.y);
        for (; i < band_row.end; ++i, change += rule_.fc1.panels().outputs)
            kernels_.add(row + columns_[i] * channels, change, rule_.input_channels, rule_.channels);
    }
}

} // namespace nca
