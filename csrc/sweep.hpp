// One step over a range of rows, in place: fire, perceive, update, band by band.
//
// A band is the fewest whole rows that hold enough firing cells to fill tiles, and that the next but one does
// not look at. The changes of its cells are added when the next band has been computed. So a step needs the
// changes of a few rows, not a second copy of the image.
#pragma once

#include <algorithm>
#include <vector>

#include "rule.hpp"

namespace nca {

// One image of a batch and its fire masks.
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

// Image number `member` of a batch (count, height, width, channels).
Image image_of(const Rule::Packed& rule, float* state, size_t count, int height, int width, const Fire& fire,
               size_t member);

// Throws std::invalid_argument where the image is too large, or too small for reflect padding.
void check_size(const Rule::Packed& rule, int height, int width);

// A position on an axis of an image with padding: inside it, or -1 where there are zeros.
int inside(Padding padding, int position, int size);

// Old values of the rows just outside a thread's range; null where the image ends.
struct Edges {
    const float* above = nullptr;
    const float* below = nullptr;
};

constexpr uint64_t kMaskWork = 4; // of one cell's fire mask, in multiply-adds

// Cells whose hidden layer exists at one time: it stays in the cache. A multiple of every tile, and fixed:
// gradients are added up block by block.
constexpr int kBlockCells = 48;

// What one thread needs, allocated before the first step.
class Sweep {
  public:
    Sweep(const Rule::Packed& rule, int width, const Lookout& lookout, int block = kBlockCells);

    // One step of rows first <= y < last. Returns whether to stop: then it may not be complete.
    bool step(const Image& image, int first, int last, int step, const Edges& edges);

    // Whether to stop, after so many cells have been computed, or as many masks looked at, more.
    bool stop_after_cells(int cells) { return lookout_.stop(cells * cell_work_); }
    bool stop_after_masks(size_t masks) { return lookout_.stop(masks * kMaskWork); }

    // The parts of a step, for those who need what it computes on the way and change nothing.
    void start(const Image& image) { start(image, 0, image.height, {}); }
    size_t count(const Image& image, int step);      // of firing cells; anything where it is to stop
    int fill_band(int y, int step);                  // lists firing cells; returns the row after the band
    int cells() const { return band_.cells; }        // in the band
    int block() const { return block_; }             // most cells of one call of hide
    float* const* firing() { return firing(band_); } // where they are in the image
    int most_cells() const { return static_cast<int>(band_.columns.size()); } // of any band
    int hide(int begin, int end); // perceives and computes the hidden layer; returns the tiles

    // Until further notice hide leaves there the states of the cells, one after the other, and what they
    // perceive unless that is null; or takes what they perceive from there instead of computing it.
    void record(float* states, float* perceived) {
        recorded_states_ = states;
        recorded_ = perceived;
    }
    void recall(const float* perceived) { recalled_ = perceived; }

    // What hide has left of the cells of the block: the rows of their neighbours, their state, what they
    // perceive, their hidden layer.
    const Segment* patches() const { return patches_.data(); }
    const float* const* states() const { return centers_.data(); }
    const float* const* perceived() const { return perceived_.rows; }
    const float* hidden() const { return hidden_.data(); } // a cell's are fc0.panels().outputs apart
    const float* const* hidden_rows() const { return hidden_rows_.data(); }

    // Calls visit(first, last, y) for the rows of cells begin .. end - 1 of the band, and visit(cell, y, x)
    // for each.
    template <class Visit> void for_each_row(int begin, int end, const Visit& visit) const {
        band_.for_each_row(begin, end, visit);
    }
    template <class Visit> void for_each_cell(int begin, int end, const Visit& visit) const {
        band_.for_each_cell(begin, end, visit);
    }

  private:
    struct BandRow {
        int y;
        int end; // index after its last firing cell
    };

    struct Band {
        int first = 0, last = 0;  // rows
        std::vector<int> columns; // of the firing cells, row by row
        std::vector<BandRow> rows;
        int cells = 0;
        Buffer changes;

        size_t row_of(int cell) const; // its number in the band

        // Calls visit(first, last, y) for the cells of each row.
        template <class Visit> void for_each_row(int begin, int end, const Visit& visit) const {
            for (size_t row = row_of(begin); begin < end; ++row) {
                const int last = std::min(rows[row].end, end);
                if (begin < last)
                    visit(begin, last, rows[row].y);
                begin = last;
            }
        }

        template <class Visit> void for_each_cell(int begin, int end, const Visit& visit) const {
            for_each_row(begin, end, [&](int first, int last, int y) {
                for (int i = first; i < last; ++i)
                    visit(i, y, columns[i]);
            });
        }
    };

    void start(const Image& image, int first, int last, const Edges& edges);
    const uint8_t* row_mask(int y, int step);
    void list_row(int y, int step);
    const float* old_row(int y) const;
    const float* border_patch(const float* row, int x, int cell, int dy);
    void point_at_neighbours(int begin, int end, int padded_end);
    void fetch_ahead(int begin, int end) const;
    void perceive(int cells, int tiles);
    void perceive(int cells, int tiles, float* to, int stride) const;
    bool fits_into_record(int cells) const;
    void point_into_record(const float* record, int cells, int tiles);
    void compute(int begin, int end);
    float* const* firing(const Band& band);
    void add_changes(const Band& band);

    const Rule::Packed& rule_;
    const Kernels& kernels_;
    const int side_, row_floats_, block_; // of a patch: cells, and floats in a row of them
    const uint64_t cell_work_;            // multiply-adds
    Lookout lookout_;

    // the call in progress
    const Image* image_ = nullptr;
    Edges edges_;
    int first_ = 0, last_ = 0;

    std::vector<uint8_t> mask_;
    Band band_, before_;                   // before_: the one before, whose changes have not been added
    std::vector<const float*> neighbours_; // [row of the patch][cell of the block]
    std::vector<const float*> centers_, joined_rows_, buffer_rows_, record_rows_, hidden_rows_;
    std::vector<float*> firing_; // cells of a band
    std::vector<Segment> patches_;
    Segment perceived_{}; // in the buffer or in a record
    // In half precision the buffer holds states as well, before what is perceived: two segments cost more
    // there.
    const int before_perceived_, buffer_stride_;
    Buffer buffer_, hidden_;
    Buffer zeros_, border_;
    float *recorded_states_ = nullptr, *recorded_ = nullptr;
    const float* recalled_ = nullptr;
};

} // namespace nca
