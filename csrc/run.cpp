// The step loop: fire, perceive, update, in place, over bands of rows.
//
// A band is the fewest whole rows that hold enough firing cells to fill tiles. Its cells are all computed
// before any is changed; then the old values of its last rows are kept for the next band, and the changes are
// added. So a step needs the old values of a few rows, not a second copy of the image.
//
// Threads take whole images of a batch. What is left over is divided by rows: each thread owns one contiguous
// range, the rows at its borders are double-buffered, and there is one barrier a step.

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "nca.hpp"
#include "parallel.hpp"
#include "rule.hpp"

namespace nca {

namespace {

constexpr int kBandCells = 160; // a last tile that is part empty costs less than two in a hundred
constexpr int kBandRows = 64;   // where next to nothing fires
constexpr int kBlockTiles = 8;  // cells whose hidden layer exists at one time: it stays in the cache
constexpr int kThreadRows = 4;  // fewer rows a thread are not worth a barrier

// One image of the batch and its fire masks.
struct Image {
    float* state;
    int height, width;
    size_t row_floats;
    const uint8_t* masks; // of step 0, or null
    size_t mask_stride;   // from step to step
    FireRow fire;

    const uint8_t* mask(int step, int y) const {
        return masks + step * mask_stride + static_cast<size_t>(y) * width;
    }
    float* row(int y) const { return state + y * row_floats; }
};

// Old values of the rows just outside a thread's range; null where the image ends.
struct Edges {
    const float* above = nullptr;
    const float* below = nullptr;
};

// What one thread needs, allocated before the first step.
class Sweep {
  public:
    Sweep(const Rule::Packed& rule, int width);

    // One step of rows first <= y < last.
    void step(const Image& image, int first, int last, int step, const Edges& edges);

  private:
    struct BandRow {
        int y;
        int end; // index after its last firing cell
    };

    void list_row(const Image& image, int y, int step);
    const float* old_row(int y) const;
    int padded(int position, int size) const;
    void point_at_neighbours(int begin, int end, int padded_end);
    void compute(int begin, int end);
    void keep_last_rows();
    void add_changes();

    const Rule::Packed& rule_;
    const Kernels& kernels_;
    const int taps_side_, taps_, block_;

    // the call in progress
    const Image* image_ = nullptr;
    Edges edges_;
    int first_ = 0, last_ = 0;
    int band_first_ = 0, band_last_ = 0;

    std::vector<uint8_t> mask_;
    std::vector<int> columns_; // of the band's firing cells, row by row
    std::vector<BandRow> band_;
    int cells_ = 0;
    std::vector<const float*> neighbours_; // [tap][cell of the block]
    std::vector<const float*> perceived_rows_, hidden_rows_;
    std::vector<Segment> perceive_, fc0_;
    Segment fc1_;
    Buffer perceived_, hidden_, changes_, kept_, zeros_;
    int perceived_stride_;
};

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
    image_ = &image;
    edges_ = edges;
    first_ = first;
    last_ = last;
    for (int y = first; y < last;) {
        band_.clear();
        cells_ = 0;
        band_first_ = y;
        while (y < last && cells_ < kBandCells && static_cast<int>(band_.size()) < kBandRows)
            list_row(image, y++, step);
        band_last_ = y;
        for (int begin = 0; begin < cells_; begin += block_)
            compute(begin, std::min(begin + block_, cells_));
        keep_last_rows();
        add_changes();
    }
}

// Appends the columns of the cells that fire in a row.
void Sweep::list_row(const Image& image, int y, int step) {
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
    if (y < band_first_)
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

// The changes of the band's cells begin .. end - 1, at most a block.
void Sweep::compute(int begin, int end) {
    const int tiles = (end - begin + kernels_.cells - 1) / kernels_.cells;
    point_at_neighbours(begin, end, begin + tiles * kernels_.cells);
    if (rule_.perception == Perception::sobel)
        kernels_.sobel(neighbours_.data(), block_, end - begin, rule_.channels, perceived_.data(),
                       perceived_stride_);
    else
        kernels_.product(perceive_.data(), taps_, tiles, rule_.perceive.panels(), false, perceived_.data());
    kernels_.product(fc0_.data(), 2, tiles, rule_.fc0.panels(), true, hidden_.data());
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

// Where an image is divided among threads: thread i owns rows cuts[i] .. cuts[i + 1] - 1.
std::vector<int> cut_rows(const Image& image, int steps, int threads, int least) {
    std::vector<uint64_t> work(image.height + 1, 0); // firing cells above row y
    for (int y = 0; y < image.height; ++y) {
        uint64_t fires = 0;
        for (int step = 0; image.masks && step < steps; ++step)
            for (int x = 0; x < image.width; ++x)
                fires += image.mask(step, y)[x];
        work[y + 1] = work[y] + (image.masks ? fires : 1);
    }
    std::vector<int> cuts(threads + 1, 0);
    cuts[threads] = image.height;
    for (int i = 1; i < threads; ++i) {
        const uint64_t share = work[image.height] * i / threads;
        const int y = static_cast<int>(std::lower_bound(work.begin(), work.end(), share) - work.begin());
        cuts[i] = std::clamp(y, cuts[i - 1] + least, image.height - (threads - i) * least);
    }
    return cuts;
}

// The old values of the rows on both sides of every cut, for even and for odd steps.
class Borders {
  public:
    Borders(int cuts, int rows, size_t row_floats)
        : rows_(rows), row_floats_(row_floats), data_(static_cast<size_t>(cuts) * 4 * rows * row_floats) {}

    Edges edges(int thread, int threads, int step) const {
        Edges edges;
        if (thread > 0)
            edges.above = at(thread - 1, 0, step);
        if (thread + 1 < threads)
            edges.below = at(thread, 1, step);
        return edges;
    }

    // Stores the values that a thread's outermost rows have before `step`.
    void store(const Image& image, int first, int last, int thread, int threads, int step) {
        if (thread > 0)
            std::copy_n(image.row(first), rows_ * row_floats_, at(thread - 1, 1, step));
        if (thread + 1 < threads)
            std::copy_n(image.row(last - rows_), rows_ * row_floats_, at(thread, 0, step));
    }

  private:
    float* at(int cut, int side, int step) const {
        return data_.data() + static_cast<size_t>((cut * 2 + side) * 2 + (step & 1)) * rows_ * row_floats_;
    }

    int rows_;
    size_t row_floats_;
    Buffer data_;
};

FireRow fire_row(const Fire& fire, uint64_t threshold, size_t member) {
    return {{static_cast<uint32_t>(fire.seed), static_cast<uint32_t>(fire.seed >> 32)},
            0,
            fire.masks ? 0 : fire.slices[member],
            static_cast<uint32_t>(fire.level) << 16 | (fire.masks ? 0 : fire.samples[member]) << 20,
            threshold};
}

} // namespace

void run(const Rule& rule, float* state, size_t count, int height, int width, int steps, const Fire& fire,
         int threads) {
    const Rule::Packed& packed = rule.packed();
    if (count == 0 || height == 0 || width == 0 || steps == 0)
        return;
    if (packed.padding == Padding::reflect && (height <= packed.radius || width <= packed.radius))
        throw std::invalid_argument("state has an image of " + std::to_string(height) + " x " +
                                    std::to_string(width) + "; reflect padding with a kernel of " +
                                    std::to_string(2 * packed.radius + 1) + " needs at least " +
                                    std::to_string(packed.radius + 1) + " rows and columns");

    const size_t cells = static_cast<size_t>(height) * width;
    const auto image = [&](size_t member) {
        return Image{state + member * cells * packed.channels,
                     height,
                     width,
                     static_cast<size_t>(width) * packed.channels,
                     fire.masks ? fire.masks + member * cells : nullptr,
                     count * cells,
                     fire_row(fire, packed.fire_threshold, member)};
    };

    const int least = std::max(packed.radius, kThreadRows);
    const size_t useful = std::max<size_t>(count, std::max(1, height / least));
    Team team(static_cast<int>(std::min<size_t>(std::max(threads, 1), useful)));
    const int size = team.size();
    // Whole images first. The rest go by rows, unless there is about one for each part.
    const int parts = std::min(size, std::max(1, height / least));
    size_t whole = count / size * size;
    if (4 * (count - whole) >= 3 * static_cast<size_t>(parts))
        whole = count;

    std::vector<Sweep> sweeps;
    sweeps.reserve(size);
    for (int i = 0; i < size; ++i)
        sweeps.emplace_back(packed, width);
    std::vector<std::vector<int>> cuts;
    for (size_t member = whole; member < count; ++member)
        cuts.push_back(cut_rows(image(member), steps, parts, least));
    std::optional<Borders> borders;
    if (whole < count)
        borders.emplace(parts - 1, packed.radius, static_cast<size_t>(width) * packed.channels);

    std::atomic<size_t> next{0};
    Barrier barrier(parts);
    team.run([&](int thread) {
        Sweep& sweep = sweeps[thread];
        for (size_t member; (member = next.fetch_add(1)) < whole;) {
            const Image whole_image = image(member);
            for (int step = 0; step < steps; ++step)
                sweep.step(whole_image, 0, height, step, {});
        }
        if (thread >= parts)
            return;
        for (size_t member = whole; member < count; ++member) {
            const Image part = image(member);
            const int first = cuts[member - whole][thread], last = cuts[member - whole][thread + 1];
            borders->store(part, first, last, thread, parts, 0);
            barrier.wait();
            for (int step = 0; step < steps; ++step) {
                sweep.step(part, first, last, step, borders->edges(thread, parts, step));
                borders->store(part, first, last, thread, parts, step + 1);
                barrier.wait();
            }
        }
    });
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

} // namespace nca
